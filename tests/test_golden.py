"""Outputs of the original AHN code, reproduced (skipped where the files are not at hand)."""

from __future__ import annotations

from functools import lru_cache
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM

import ahn
from ahn.checkpoint import merge, split
from ahn.training import Distiller, distillation_loss
from checkpoint_folders import same_files
from tiny_models import memory_parameters, pieces, read

GOLDEN = Path(__file__).parents[2] / "shared" / "golden"
CASES = sorted(path for path in GOLDEN.glob("*-*") if path.is_dir())
pytestmark = [
    pytest.mark.skipif(not CASES, reason=f"no golden outputs in {GOLDEN.name}/"),
    pytest.mark.parametrize("case", CASES, ids=lambda path: path.name),
]
WINDOW, SINKS = 64, 128
TOLERANCE = {"GatedDeltaNet": 2e-5, "DeltaNet": 2e-5, "Mamba2": 5e-2}  # the last ran in tf32


@lru_cache(maxsize=1)
def golden(case):
    """The original's recorded tensors, and the same model here."""
    cell = case.name.partition("-")[2]
    model = ahn.from_pretrained(case / "base", case / "ahn", window=WINDOW, num_sinks=SINKS)
    assert model.config.ahn_config["memory"] == cell
    return load_file(case / "io.safetensors"), model, TOLERANCE[cell]


@torch.no_grad()
def test_merged_and_split(case, tmp_path):
    recorded, model, _ = golden(case)
    merge(case / "base", case / "ahn", tmp_path / "merged", window=WINDOW, num_sinks=SINKS)
    merged = AutoModelForCausalLM.from_pretrained(tmp_path / "merged")
    ids = recorded["input_ids"]
    assert torch.equal(merged(ids).logits, model(ids).logits)
    merge(case / "base", case / "ahn", tmp_path / "as it is")
    split(tmp_path / "as it is", tmp_path / "split")
    assert same_files(case / "ahn", tmp_path / "split")


@torch.no_grad()
def test_within_the_budget(case):
    recorded, model, _ = golden(case)
    logits = model(recorded["input_ids"][:, :150]).logits
    assert_within(logits, recorded["logits_short150"], 2e-5)


@pytest.mark.parametrize("chunks", [[420], pieces(420, 96), [200, *[1] * 100, 120]], ids=len)
@torch.no_grad()
def test_prefill_then_decoding_token_by_token(case, chunks):
    recorded, model, tolerance = golden(case)
    ids, cache = recorded["input_ids"], ahn.AHNCache(model.config)
    logits = read(model, ids[:, :420], chunks, cache)
    assert_within(logits, recorded["logits_prefill420"], tolerance)
    assert_within(
        read(model, ids[:, 420:], [1] * 12, cache), recorded["logits_decode12"], tolerance
    )


@torch.no_grad()
def test_without_a_cache(case):
    recorded, model, tolerance = golden(case)
    logits = model(recorded["input_ids"][:, :420], use_cache=False).logits
    assert_within(logits, recorded["logits_prefill420"], tolerance)
    with ahn.memory_off(model):
        window_alone = model(recorded["input_ids"][:, :420], use_cache=False).logits
    assert (window_alone - logits).abs().max() > 10 * tolerance


def test_loss_and_gradients(case):
    recorded, model, tolerance = golden(case)
    Distiller(model).zero_grad()
    loss = distillation_loss(
        model, recorded["input_ids"][:, :256], recorded["train.labels"], window=64, num_sinks=0
    )
    loss.backward()
    allowed = max(1e-4, tolerance / 8)
    assert abs(loss.item() / recorded["train.loss"].item() - 1) <= allowed
    for name, parameter in memory_parameters(model).items():
        expected = recorded[f"grad.{name}"]
        difference = (parameter.grad - expected).norm() / expected.norm()
        assert difference <= allowed, f"{name}: {difference:.1e}"


def assert_within(actual, expected, tolerance):
    assert (actual - expected).abs().max() <= tolerance
