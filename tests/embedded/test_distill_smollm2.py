"""The recipe of memories for SmolLM2, at a size that takes seconds, on the embedded base."""

from __future__ import annotations

import json
from dataclasses import replace

import pytest
import torch

import ahn
from ahn.embedded import BASE, distill_smollm2
from ahn.embedded.distill_smollm2 import Settings, train_memory
from ahn.training.losses import IGNORE

TINY = replace(
    Settings(), window=32, slots=16, steps=4, length=256, rows=2, shares_rows=(256, 1)
)  # fmt: skip
TEXT = "stdlib:argparse"


@pytest.mark.slow
def test_it_writes_a_memory_and_what_made_it(tmp_path, monkeypatch):
    monkeypatch.setattr(distill_smollm2, "SMOLLM2", "embedded")
    out = tmp_path / "out"
    train_memory([TEXT], TINY, out, "cpu")
    found = json.loads((out / "training.json").read_text())
    assert found["settings"]["slots"] == 16 and found["texts"] == ["argparse"]
    assert found["shares_kl"][0][0] == "window" and len(found["shares_kl"]) > 1
    assert ahn.from_pretrained(BASE, out).config.ahn_config["slots"] == 16


def test_rows_are_padded_without_a_loss_and_each_pass_asks_for_other_facts():
    tokenizer = ahn.checkpoint.load_tokenizer("embedded")
    batches = distill_smollm2._batches(tokenizer, [TEXT], replace(TINY, facts=1.0))
    made = [next(batches) for _ in range(200)]  # some passes
    for batch in made:
        assert batch.input_ids.shape == batch.labels.shape and len(batch.labels) == 2
        labelled = batch.labels != IGNORE
        assert torch.equal(batch.labels[labelled], batch.input_ids[labelled])
    rows = {tuple(row.tolist()) for batch in made for row in batch.input_ids}
    assert len(rows) > 350
