"""A run goes on from what it was, or says what is missing, damaged or another."""

from __future__ import annotations

import json
import os
import random
import shutil
import signal
import sys
import time
from pathlib import Path

import pytest
from runs import losses, prepared, same_weights, train
from transformers import AutoTokenizer

from ahn.embedded import BASE
from ahn.io.lock import only_user
from ahn.training.checkpoints import STAGING
from ahn.training.manifest import MANIFEST
from children import started
from tiny_models import base_model


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A base and data, and a whole run in `unbroken`."""
    folder = prepared(tmp_path_factory.mktemp("run"))
    train(folder, "unbroken")
    return folder


@pytest.fixture
def begun(folder, tmp_path):
    """A run with its checkpoint of step 6 alone, and of step 3 where it is asked for."""

    def copy(*steps):
        for step in steps:
            name = f"checkpoint-{step}"
            shutil.copytree(folder / "unbroken" / name, tmp_path / "run" / name)
        return tmp_path / "run"

    return copy


def files(checkpoint):
    return sorted(x.name for x in checkpoint.iterdir() if x.name != "training_args.bin")


@pytest.mark.slow
def test_every_missing_file_is_named(folder, begun):
    names = files(folder / "unbroken" / "checkpoint-6")
    assert {"optimizer.pt", "scheduler.pt", "rng_state.pth", MANIFEST} <= set(names)
    for name in names:
        run = begun(6)
        (run / "checkpoint-6" / name).unlink()
        for checkpoint in ("last", str(run / "checkpoint-6")):
            with pytest.raises(ValueError, match=rf"(?s)checkpoint-6.*{name}") as caught:
                train(folder, str(run), resume_from_checkpoint=checkpoint)
            assert "\n" not in str(caught.value)
        shutil.rmtree(run)


@pytest.mark.slow
def test_every_damaged_file_is_named(folder, begun):
    for name in files(folder / "unbroken" / "checkpoint-6"):
        run = begun(6)
        path, chance = run / "checkpoint-6" / name, random.Random(name)
        data = bytearray(path.read_bytes())
        data[chance.randrange(len(data))] ^= 1 << chance.randrange(8)
        path.write_bytes(data)
        with pytest.raises(ValueError, match=rf"checkpoint-6/{name}: expected"):
            train(folder, str(run), resume_from_checkpoint="last")
        shutil.rmtree(run)


@pytest.mark.slow
def test_last_is_the_newest_whole_one(folder, begun):
    """The damaged one is said, and written anew when its step comes."""
    run = begun(3, 6)
    (run / "checkpoint-6" / "optimizer.pt").write_bytes(b"")
    with pytest.warns(UserWarning, match=r"checkpoint-6/optimizer.pt: .*goes on from checkpoint-3"):
        train(folder, str(run), resume_from_checkpoint="last")
    assert same_weights(run, folder / "unbroken")
    assert losses(run) == losses(folder / "unbroken")
    assert (run / "checkpoint-6" / "optimizer.pt").stat().st_size
    assert not (run / STAGING).exists()


def other_base(folder, tmp_path, **options):
    base = tmp_path / "other base"
    base_model(vocab_size=4096, num_hidden_layers=2, **options).save_pretrained(base)
    AutoTokenizer.from_pretrained(BASE).save_pretrained(base)
    return {"model_name_or_path": str(base)}


def other_data(folder, tmp_path, change):
    rows = (folder / "data.jsonl").read_text().splitlines()
    (tmp_path / "d.jsonl").write_text("\n".join(change(rows)))
    return {"dataset": str(tmp_path / "d.jsonl")}


OTHERS = {
    "weights": (lambda f, t: other_base(f, t, seed=9), "a base with weights="),
    "RoPE": (lambda f, t: other_base(f, t, rope_theta=5e5), "a base with rope_"),
    "fewer rows": (lambda f, t: other_data(f, t, lambda x: x[:20]), "training data with"),
    "another order": (lambda f, t: other_data(f, t, lambda x: x[::-1]), "training data with cont"),
    "a shorter cut": (lambda f, t: {"cutoff_len": 64}, "training data with content="),
    "packing": (lambda f, t: {"packing": True}, "training data with"),
    "loss": (lambda f, t: {"loss_type": "ce"}, "a run with loss_type=kl, got ce"),
    "weights of losses": (lambda f, t: {"loss_type": "kl+ce"}, "a run with loss_type=kl, got"),
    "budget": (
        lambda f, t: {"sliding_window_type": "fixed", "sliding_window": 32},
        "a run with sliding_window=256, got 32",
    ),
    "seed": (lambda f, t: {"seed": 5}, "a run with seed=42, got 5"),
    "learning rate": (lambda f, t: {"learning_rate": 1.0}, "a run with learning_rate=0.01"),
    "rate of maps": (lambda f, t: {"map_rate": 1.0}, "a run with map_rate=0.1, got 1.0"),
    "schedule": (lambda f, t: {"lr_scheduler_type": "linear"}, "a run with lr_scheduler_type="),
    "cell": (lambda f, t: {"ahn_implementation": "DeltaNet"}, "a memory with memory="),
}


@pytest.mark.slow
@pytest.mark.parametrize("other", OTHERS)
def test_another_run_is_refused(other, folder, begun, tmp_path):
    change, said = OTHERS[other]
    changes = change(folder, tmp_path)
    with pytest.raises(ValueError, match=f"checkpoint-6: expected {said}") as caught:
        train(folder, str(begun(6)), resume_from_checkpoint="last", **changes)
    assert "\n" not in str(caught.value)


@pytest.mark.slow
def test_steps_may_change_and_data_may_move(folder, begun, tmp_path):
    moved = other_data(folder, tmp_path, lambda rows: rows)
    train(folder, str(begun(6)), resume_from_checkpoint="last", max_steps=9, save_steps=9, **moved)
    assert (tmp_path / "run" / "checkpoint-9").is_dir()


@pytest.mark.slow
def test_a_second_pass_of_a_stream_goes_on_where_it_stood(folder, tmp_path):
    stream = {**other_data(folder, tmp_path, lambda rows: rows[:5]), "streaming": True}
    options = {**stream, "max_steps": 9, "save_steps": 1, "save_total_limit": 9}
    train(folder, str(tmp_path / "whole"), **options)
    assert len(set(losses(tmp_path / "whole").values())) == 9
    for step in (2, 3, 7):  # within the first pass, at its end, in the third
        run = tmp_path / str(step)
        shutil.copytree(tmp_path / "whole" / f"checkpoint-{step}", run / f"checkpoint-{step}")
        train(folder, str(run), resume_from_checkpoint="last", **options)
        assert losses(run) == losses(tmp_path / "whole")
        assert same_weights(run, tmp_path / "whole")


def coded_train(folder, out):
    """A run whose refusal is the process's exit code."""
    try:
        train(folder, out, save_steps=1)
    except ValueError:
        sys.exit(3)


@pytest.mark.slow
def test_the_second_of_two_runs_in_a_folder_is_refused(folder, tmp_path):
    with (
        only_user(tmp_path / "out", "output_dir"),
        pytest.raises(ValueError, match="output_dir: expected a folder that no other run is using"),
    ):
        train(folder, str(tmp_path / "out"))
    children = [started(coded_train, folder, str(tmp_path / "both")) for _ in range(2)]
    for child in children:
        child.join()
    codes = sorted(child.exitcode for child in children)
    assert codes == [0, 3]
    assert same_weights(tmp_path / "both", folder / "unbroken")


def test_a_lock_ends_with_its_process(tmp_path):
    """Also where a worker that it forked lives on."""
    read, write = os.pipe()
    child = os.fork()
    if child == 0:
        with only_user(tmp_path / "out", "output_dir"):
            if os.fork() == 0:
                time.sleep(10)
                os._exit(0)
            os.write(write, b"x")
            signal.pause()
    os.read(read, 1)
    with pytest.raises(ValueError), only_user(tmp_path / "out", "output_dir"):
        pass
    os.kill(child, signal.SIGKILL)
    os.waitpid(child, 0)
    with only_user(tmp_path / "out", "output_dir"):
        pass


def test_a_run_that_fails_leaves_no_folder(folder, tmp_path):
    with pytest.raises(ValueError):
        train(folder, str(tmp_path / "no"), loss_type="x")
    assert not (tmp_path / "no").exists()


def test_what_a_killed_run_was_saving_goes(folder, begun):
    run = begun(6)
    (run / STAGING / "checkpoint-7").mkdir(parents=True)
    train(folder, str(run), resume_from_checkpoint="last", max_steps=6)
    assert not (run / STAGING).exists()


def test_a_checkpoint_without_a_record_is_refused(folder, begun):
    """As 0.1.0 wrote them."""
    run = begun(6)
    (run / "checkpoint-6" / MANIFEST).unlink()
    with pytest.raises(ValueError, match=f"expected {MANIFEST}, got a folder without it"):
        train(folder, str(run), resume_from_checkpoint="last")


def test_the_record_holds_no_place_of_this_machine(folder):
    values = json.loads((folder / "unbroken" / "checkpoint-3" / MANIFEST).read_text())
    assert str(Path(folder).parent) not in json.dumps(values)
