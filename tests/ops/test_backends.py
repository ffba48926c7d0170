"""Kernels are chosen openly: an explicit choice never falls back in silence."""

import pytest
import torch

import ahn
from ahn.ops.backends import check_kernels, choose
from ahn.ops.delta_rule import delta_rule
from ahn.ops.ssd import ssd
from tiny_models import base_model

FAST = ["fla", "triton"]


@pytest.mark.parametrize("kernels", FAST)
def test_on_the_cpu_auto_takes_pytorch_and_others_are_refused_with_the_reason(kernels):
    value, gate = torch.zeros(1, 2, 1, 8), torch.zeros(1, 2, 1)
    assert choose("auto", value, value, gated=True) == "torch"
    assert choose("torch", value, value, gated=True) == "torch"
    message = f"kernels='{kernels}': expected a CUDA device, got cpu"
    with pytest.raises(ValueError, match=message):
        choose(kernels, value, value, gated=False)
    for op in (delta_rule, ssd):
        with pytest.raises(ValueError, match=message):
            op(value, value, value, gate, kernels=kernels)


def test_unknown_kernels_are_refused_when_attaching():
    known = "kernels: expected one of auto, torch, fla, triton"
    with pytest.raises(ValueError, match=f"{known}, got 'cuda'"):
        check_kernels("cuda")
    with pytest.raises(ValueError, match=known):
        ahn.attach(base_model(), ahn.AHNConfig(), kernels="cutlass")


@pytest.mark.parametrize("kernels", FAST)
def test_the_choice_reaches_the_cells(kernels):
    model = ahn.attach(base_model(), ahn.AHNConfig(window=4, num_sinks=0), kernels=kernels)
    with pytest.raises(ValueError, match=f"kernels='{kernels}': expected a CUDA device"):
        model(torch.zeros(1, 9, dtype=torch.long))
