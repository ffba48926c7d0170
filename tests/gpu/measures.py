"""What the tests of a GPU share."""

from __future__ import annotations

from ahn.hf.install import use_kernels
from tiny_models import new_model

DEVICE = "cuda"


def difference(ours, exact) -> float:
    """Relative to the exact result, over all numbers; 0 where there are none."""
    if not exact.numel():
        assert ours.shape == exact.shape, (ours.shape, exact.shape)
        return 0.0
    return ((ours.double() - exact.double()).norm() / exact.double().norm()).item()


def pair(cell, **settings):
    """The same model with the fused kernels and without."""
    models = [new_model("Qwen3", cell, **settings).to(DEVICE) for _ in range(2)]
    use_kernels(models[1], "torch")
    return models
