"""Law: a run under DeepSpeed gives the losses and the memory of one process."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from runs import in_two_processes, losses, prepared, same_weights, train, weights

from ahn.training.run import _check_evaluation
from ahn.training.zero3 import check_deepspeed

SCRIPT = Path(__file__).with_name("deepspeed_processes.py")
METRICS = ("eval_full_ce", "eval_window_ce", "eval_memory_ce", "eval_kl")


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """What two processes left, and the same run by this one."""
    pytest.importorskip("deepspeed")
    folder = prepared(tmp_path_factory.mktemp("deepspeed"))
    in_two_processes(SCRIPT, folder, DS_ACCELERATOR="cpu")
    train(folder, "one", eval_dataset=str(folder / "data.jsonl"))
    return folder


def last(folder: Path) -> dict:
    return json.loads((folder / "training.json").read_text())["log"][-1]


@pytest.mark.parametrize("stage", [2, 3])
def test_a_run_of_two_processes(folder, stage):
    got = folder / f"zero{stage}"
    assert losses(got) == pytest.approx(losses(folder / "one"), rel=1e-4)
    for name in METRICS:
        assert last(got)[name] == pytest.approx(last(folder / "one")[name], rel=1e-4), name
    for name, tensor in weights(folder / "one").items():
        torch.testing.assert_close(weights(got)[name], tensor, atol=1e-5, rtol=1e-3)


@pytest.mark.parametrize("again", ["resumed", "late"])
@pytest.mark.parametrize("stage", [2, 3])
def test_resumed_equals_unbroken(folder, stage, again):
    whole, resumed = folder / f"zero{stage}", folder / f"zero{stage}-{again}"
    assert same_weights(whole, resumed)
    assert losses(whole) == losses(resumed)
    assert {x: last(whole)[x] for x in METRICS} == {x: last(resumed)[x] for x in METRICS}


@pytest.mark.parametrize("stage", [2, 3])
def test_checkpoints_hold_the_memory_alone(folder, stage):
    checkpoint = folder / f"zero{stage}" / "checkpoint-3"
    base = (folder / "base" / "model.safetensors").stat().st_size
    assert sum(x.stat().st_size for x in checkpoint.rglob("*")) < base / 8


def test_zero3_gathers_a_layer_at_a_time(folder):
    """Of a model that is half embeddings: one of those, or a layer."""
    shares = json.loads((folder / "shares.json").read_text())
    assert shares and 0 < max(shares) < 0.7


def of_stage(stage: int) -> SimpleNamespace:
    return SimpleNamespace(hf_deepspeed_config=SimpleNamespace(is_zero3=lambda: stage == 3))


@pytest.mark.parametrize("version", ["0.16.4", "0.19.2"])
def test_zero3_of_a_deepspeed_with_the_bug_is_refused(monkeypatch, version):
    monkeypatch.setitem(sys.modules, "deepspeed", SimpleNamespace(__version__=version))
    said = f"deepspeed: expected 0.19.3 or newer for ZeRO-3 .*got {version}, .*DeepSpeed#8130"
    with pytest.raises(ValueError, match=said):
        check_deepspeed(of_stage(3))
    check_deepspeed(of_stage(2))
    check_deepspeed(SimpleNamespace())


@pytest.mark.parametrize("version", ["0.19.3", "0.19.8+cpu", "0.20.0"])
def test_zero3_of_a_later_one_is_not(monkeypatch, version):
    monkeypatch.setitem(sys.modules, "deepspeed", SimpleNamespace(__version__=version))
    check_deepspeed(of_stage(3))


def test_zero3_packs_no_rows(monkeypatch):
    """A layer calls its memory for every document: processes would differ in how often."""
    monkeypatch.setitem(sys.modules, "deepspeed", SimpleNamespace(__version__="0.19.8"))
    check_deepspeed(of_stage(2), packing=True)
    with pytest.raises(ValueError, match="packing: expected ZeRO-2 or FSDP2, got ZeRO-3"):
        check_deepspeed(of_stage(3), packing=True)


def test_zero3_evaluates_no_document_within_the_budget():
    """Its process would call no memory, which the others wait for."""
    rows = [{"input_ids": [0] * length} for length in (30, 21, 20)]
    _check_evaluation(rows, 20, all_beyond=False)
    _check_evaluation(rows, 19, all_beyond=True)
    with pytest.raises(ValueError, match=r"budget of 20 under ZeRO-3 .*got one of 20 tok"):
        _check_evaluation(rows, 20, all_beyond=True)
