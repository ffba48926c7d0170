"""Runs: resumed = unbroken, however they ended; what goes wrong is said in one line."""

from __future__ import annotations

import json
import os
import shutil
import signal
from pathlib import Path

import pytest
import torch
from runs import losses, prepared, same_weights, train, weights
from safetensors.torch import load_file, save_file
from transformers import AutoTokenizer
from transformers.trainer_utils import get_last_checkpoint

import ahn
from ahn.checkpoint import merge
from ahn.training import Distiller
from ahn.training.trainer import DistillTrainer
from tiny_models import base_model, new_model


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A base and data, and a whole run in `unbroken`."""
    folder = prepared(tmp_path_factory.mktemp("run"))
    train(folder, "unbroken")
    return folder


@pytest.mark.slow
def test_a_run_ends_with_the_memory_its_log_and_its_curve(folder):
    out = folder / "unbroken"
    assert {"training.json", "training.png", "ahn_config.json"} <= {x.name for x in out.iterdir()}
    model = ahn.from_pretrained(folder / "base", out)
    assert (model.config.ahn_config["window"], model.config.ahn_config["num_sinks"]) == (16, 2)
    assert len(losses(out)) == 8
    assert [x.name for x in sorted(out.glob("checkpoint-*"))] == [
        f"checkpoint-{i}" for i in (3, 6, 8)
    ]
    base = load_file(folder / "base" / "model.safetensors")
    assert not any(".ahn." in name for name in base)
    assert all(".ahn." in name for name in weights(out / "checkpoint-3"))


def interrupted(folder, out, monkeypatch, step, act):
    """A run in which `act` happens once, before the loss of a step."""
    own = DistillTrainer.compute_loss

    def compute_loss(self, *args, **kwargs):
        if self.state.global_step == step and not getattr(self, "acted", False):
            self.acted = True
            act()
        return own(self, *args, **kwargs)

    with monkeypatch.context() as patch:
        patch.setattr(DistillTrainer, "compute_loss", compute_loss)
        return train(folder, out)


@pytest.mark.slow
def test_resumed_equals_unbroken(folder, monkeypatch):
    def fail():
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        interrupted(folder, "failed", monkeypatch, 4, fail)
    assert get_last_checkpoint(folder / "failed").endswith("checkpoint-3")
    with pytest.raises(ValueError, match="output_dir: expected a folder without checkpoints"):
        train(folder, "failed")
    train(folder, "failed", resume_from_checkpoint="last")
    assert losses(folder / "failed") == losses(folder / "unbroken")
    assert same_weights(folder / "failed", folder / "unbroken")


def test_a_run_killed_after_its_last_checkpoint(folder):
    """There is nothing left to train, only the result to write."""
    shutil.copytree(folder / "unbroken", folder / "late")
    for name in ("ahn_model.safetensors", "ahn_config.json", "training.json"):
        (folder / "late" / name).unlink()
    train(folder, "late", resume_from_checkpoint="last")
    assert same_weights(folder / "late", folder / "unbroken")
    assert losses(folder / "late") == losses(folder / "unbroken")
    assert get_last_checkpoint(folder / "late").endswith("checkpoint-8")


@pytest.mark.slow
def test_sigterm_saves_and_stops(folder, monkeypatch):
    before = signal.getsignal(signal.SIGTERM)
    outcome = interrupted(
        folder, "stopped", monkeypatch, 4, lambda: os.kill(os.getpid(), signal.SIGTERM)
    )
    assert outcome.stopped
    assert get_last_checkpoint(folder / "stopped").endswith("checkpoint-5")
    assert not (folder / "stopped" / "ahn_config.json").exists()
    assert signal.getsignal(signal.SIGTERM) is before
    assert not train(folder, "stopped", resume_from_checkpoint="last").stopped
    assert same_weights(folder / "stopped", folder / "unbroken")


@pytest.mark.slow
def test_accumulated_batches_equal_one_large_batch(folder):
    train(folder, "accumulated", per_device_train_batch_size=1, gradient_accumulation_steps=2)
    for step, loss in losses(folder / "unbroken").items():
        assert abs(losses(folder / "accumulated")[step] - loss) < 1e-4 * loss


@pytest.mark.slow
def test_all_losses_and_a_merged_model(folder):
    options = {"loss_type": "kl+ce+distill", "packing": True, "cutoff_len": 300, "max_steps": 2}
    train(folder, "all", save_ahn_only=False, eval_dataset=str(folder / "data.jsonl"), **options)
    log = json.loads((folder / "all" / "training.json").read_text())["log"]
    assert {"kl", "memory_ce", "teacher_ce", "distill", "tokens_per_second"} <= set(log[0])
    assert {"eval_recovered", "eval_full_ce", "eval_window_ce"} <= set(log[-1])
    apart = ahn.from_pretrained(folder / "base", folder / "all")
    merged = ahn.from_pretrained(folder / "all" / "merged")
    ids = torch.arange(40)[None]
    assert torch.equal(apart(ids).logits, merged(ids).logits)


@pytest.mark.slow
def test_going_on_from_a_memory(folder):
    train(folder, "more", memory=str(folder / "unbroken"), max_steps=1, learning_rate=1e-9)
    for name, tensor in weights(folder / "more").items():
        torch.testing.assert_close(tensor, weights(folder / "unbroken")[name], atol=1e-6, rtol=1e-6)


@pytest.mark.slow
@pytest.mark.parametrize("apart", [True, False])
def test_going_on_from_released_weights(folder, tmp_path, apart):
    """As they are, or merged with their base; the window in them stays unless another is given."""
    ahn.save_pretrained(
        ahn.from_pretrained(folder / "base", folder / "unbroken", window=20),
        tmp_path / "released",
        format="released",
    )
    options = {"memory": str(tmp_path / "released")}
    if not apart:
        merge(folder / "base", tmp_path / "released", tmp_path / "merged")
        AutoTokenizer.from_pretrained(folder / "base").save_pretrained(tmp_path / "merged")
        options = {"model_name_or_path": str(tmp_path / "merged")}
    out, rate = str(tmp_path / "out"), {"max_steps": 1, "learning_rate": 1e-9}
    train(folder, out, window=None, num_sinks=None, **options, **rate)
    for name, tensor in weights(tmp_path / "out").items():
        torch.testing.assert_close(tensor, weights(folder / "unbroken")[name], atol=1e-6, rtol=1e-6)
    settings = json.loads((tmp_path / "out" / "ahn_config.json").read_text())["ahn_config"]
    assert (settings["window"], settings["num_sinks"]) == (20, 2)


@pytest.mark.slow
def test_a_loss_that_is_not_finite_stops_the_run(folder, tmp_path):
    """A base with a broken embedding: only a batch with that token shows it."""
    prepared(tmp_path)
    tensors = load_file(tmp_path / "base" / "model.safetensors")
    word = AutoTokenizer.from_pretrained(tmp_path / "base")("§")["input_ids"][-1]
    tensors["model.embed_tokens.weight"][word] = float("nan")
    save_file(tensors, tmp_path / "base" / "model.safetensors", {"format": "pt"})
    rows = (tmp_path / "data.jsonl").read_text().splitlines()
    rows[0] = json.dumps({"text": "§ " * 60})
    (tmp_path / "data.jsonl").write_text("\n".join(rows))
    with pytest.raises(
        ValueError, match="loss: expected a finite number, got nan at step"
    ) as error:
        train(tmp_path, "out", max_steps=60, save_steps=1)
    assert "begins with" in str(error.value)
    last = get_last_checkpoint(tmp_path / "out")
    assert last is None or all(x.isfinite().all() for x in weights(Path(last)).values())


@pytest.mark.slow
@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"loss_type": "kl+x"}, "loss_type: expected kl, ce, distill joined by"),
        ({"loss_weights": [1.0, 2.0]}, "loss_weights: expected 1 numbers"),
        ({"sliding_window_type": "x"}, "sliding_window_type: expected one of fixed"),
        ({"ahn_implementation": "x"}, "memory: expected one of"),
        ({"sliding_window_type": "fixed", "sliding_window": 500}, "of at least 501 tokens"),
        ({"eval_dataset": "data.jsonl", "window": 99}, "longer than the budget of 101"),
        ({"eval_dataset": "none.jsonl"}, "none.jsonl: expected samples, got no file"),
        ({"streaming": True, "max_steps": -1}, "max_steps: expected a number above 0"),
        ({"resume_from_checkpoint": "nowhere"}, "resume_from_checkpoint: expected a folder"),
        ({"load_best_model_at_end": True, "eval_strategy": "steps", "save_strategy": "steps",
          "eval_steps": 3}, "load_best_model_at_end: expected false"),
        ({"activation_checkpointing_kwargs": {"offload": True}}, "expected none of offload"),
    ],
    ids=lambda x: None if isinstance(x, str) else str(x)[:40],
)  # fmt: skip
def test_wrong_arguments(folder, changes, said, monkeypatch):
    monkeypatch.chdir(folder)
    with pytest.raises(ValueError) as caught:
        train(folder, "wrong", **changes)
    assert said in str(caught.value)
    assert "\n" not in str(caught.value)


def test_a_checkpoint_of_another_cell_or_base(folder, tmp_path):
    checkpoint = str(folder / "unbroken" / "checkpoint-3")
    with pytest.raises(ValueError, match="expected a memory with memory=GatedDeltaNet, got Mamba2"):
        train(folder, "x", ahn_implementation="Mamba2", resume_from_checkpoint=checkpoint)
    prepared(tmp_path)
    base_model(vocab_size=4096, hidden_size=32, num_hidden_layers=2).save_pretrained(
        tmp_path / "base"
    )
    with pytest.raises(ValueError, match="expected a base with hidden_size=64, got 32"):
        train(tmp_path, "x", resume_from_checkpoint=checkpoint)


def test_checkpoints_without_the_base_are_loaded_strictly():
    """As DeepSpeed reads its own: the base stays, but the memory must be whole."""
    distiller = Distiller(new_model())
    state = {name: x.clone() for name, x in distiller.state_dict().items()}
    own = {name: x + 1 for name, x in state.items() if ".ahn." in name}
    distiller.load_state_dict(own)
    for name, tensor in distiller.state_dict().items():
        assert torch.equal(tensor, {**state, **own}[name]), name
    own.popitem()
    with pytest.raises(RuntimeError, match="Missing key"):
        distiller.load_state_dict(own)


@pytest.mark.slow
def test_a_stream_gives_the_same_steps(folder):
    """Its rows are read in order; resuming reads past those that were seen."""
    options = {"streaming": True, "max_steps": 5, "save_steps": 2}
    train(folder, "stream", **options)
    shutil.copytree(folder / "stream" / "checkpoint-2", folder / "stream again" / "checkpoint-2")
    train(folder, "stream again", resume_from_checkpoint="last", **options)
    assert same_weights(folder / "stream", folder / "stream again")


def test_liger_needs_a_gpu(folder):
    with pytest.raises(ValueError, match="use_liger: expected all weights on CUDA devices"):
        train(folder, "liger", use_liger_kernel=True)
