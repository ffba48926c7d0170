"""Law: many processes give the losses and the memory of one."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from runs import in_two_processes, losses, prepared, same_weights, train, weights

SCRIPT = Path(__file__).with_name("two_processes.py")


pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """What two processes left, started once: importing takes longer than all they do."""
    folder = prepared(tmp_path_factory.mktemp("two"))
    rows = [{"text": f"{n} word " * n} for n in range(20, 300, 20)]
    (folder / "uneven.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    in_two_processes(SCRIPT, folder)
    return folder


def test_sharded_by_fsdp2(folder):
    from two_processes import distiller_of, steps

    report = json.loads((folder / "sharded.json").read_text())
    for tied in (False, True):
        assert report[str(tied)]["kinds"] == ["DTensor"]
        alone = distiller_of(tied)
        expected = steps(alone, 0, 1)
        assert expected[0] != expected[1]
        assert report[str(tied)]["losses"] == pytest.approx(expected, rel=1e-5)
        saved = weights(folder / f"sharded-{tied}")
        own = {name: tensor for name, tensor in alone.model.state_dict().items() if name in saved}
        assert len(own) == len(saved) == sum(".ahn." in n for n in alone.model.state_dict())
        for name, tensor in own.items():
            torch.testing.assert_close(saved[name], tensor, atol=1e-4, rtol=1e-3)
        again = weights(folder / f"again-{tied}")
        assert all(torch.equal(again[name], tensor) for name, tensor in saved.items())


def test_all_processes_draw_the_same_budgets_and_each_has_tokens_beyond_them(folder):
    drawn = [json.loads((folder / f"drawn-{rank}.json").read_text()) for rank in range(2)]
    limits = [[each[1:] for each in one] for one in drawn]
    assert limits[0] == limits[1] and len(limits[0]) > 5
    assert any(a[0] != b[0] for a, b in zip(*drawn)), "texts of one length show nothing"
    assert len({tuple(each) for each in limits[0]}) > 1
    assert all(length > window + sinks for length, window, sinks in [*drawn[0], *drawn[1]])


@pytest.fixture(scope="module")
def alone(folder):
    """The same run by this process."""
    train(folder, "one", eval_dataset=str(folder / "data.jsonl"))
    return losses(folder / "one")


@pytest.mark.parametrize("strategy", ["two", "fsdp2"])
def test_a_run_of_two_processes(folder, alone, strategy):
    two = losses(folder / strategy)
    assert two.keys() == alone.keys()
    for step, loss in alone.items():
        assert two[step] == pytest.approx(loss, rel=1e-4)
    logs = [
        json.loads((folder / x / "training.json").read_text())["log"] for x in ("one", strategy)
    ]
    for name in ("eval_full_ce", "eval_window_ce", "eval_memory_ce", "eval_kl"):
        assert logs[1][-1][name] == pytest.approx(logs[0][-1][name], rel=1e-4), name


def test_a_sharded_run_holds_shards_and_saves_the_memory_alone(folder):
    assert json.loads((folder / "kinds.json").read_text()) == ["DTensor"]
    checkpoint = folder / "fsdp2" / "checkpoint-6"
    base = (folder / "base" / "model.safetensors").stat().st_size
    assert sum(file.stat().st_size for file in checkpoint.iterdir()) < base / 4
    assert weights(checkpoint).keys() == weights(folder / "one").keys()
    for name, tensor in weights(folder / "one").items():
        torch.testing.assert_close(weights(folder / "fsdp2")[name], tensor, atol=1e-4, rtol=1e-3)


@pytest.mark.parametrize("again", ["resumed", "late"])
def test_a_sharded_run_resumed_equals_the_unbroken(folder, again):
    """Also where nothing is left but to evaluate."""
    assert losses(folder / "fsdp2") == losses(folder / again)
    assert same_weights(folder / "fsdp2", folder / again)
    logs = [json.loads((folder / x / "training.json").read_text())["log"] for x in ("fsdp2", again)]
    assert logs[0][-1]["eval_memory_ce"] == logs[1][-1]["eval_memory_ce"]
