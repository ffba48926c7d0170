"""A curve of 20 steps on the embedded model that must not move; `golden_curve.json` holds it.

In float32: processors round products of bfloat16 each in their own way.
"""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from runs import losses, train

GOLDEN = Path(__file__).with_name("golden_curve.json")
TEXT = Path(__file__).parents[2] / "LICENSE"
SETTINGS = {
    "model_name_or_path": "embedded",
    "dtype": "float32",
    "dataset": "text.txt",
    "window": 32,
    "num_sinks": 0,
    "loss_type": "kl+ce+distill",
    "loss_weights": [1.0, 0.1, 0.1],
    "cutoff_len": 128,
    "filter_len": 64,
    "learning_rate": 1e-3,
    "max_steps": 20,
    "per_device_train_batch_size": 1,
    "save_strategy": "no",
}


@pytest.mark.slow
def test_twenty_steps(tmp_path):
    (tmp_path / "text.txt").write_text(TEXT.read_text())
    train(tmp_path, "out", **{**SETTINGS, "dataset": str(tmp_path / "text.txt")})
    got = list(losses(tmp_path / "out").values())
    assert got == pytest.approx(json.loads(GOLDEN.read_text()), rel=1e-5)
