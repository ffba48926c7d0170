"""Kernels are chosen openly: an explicit choice never falls back in silence."""

import pytest
import torch

import ahn
from ahn.ops.delta_rule import delta_rule
from ahn.ops.kernels import check_kernels, use_fla
from models import base_model


def test_on_the_cpu_auto_takes_pytorch_and_fla_is_refused_with_the_reason():
    value = torch.zeros(1, 2, 1, 8)
    assert not use_fla("auto", value, gated=True)
    assert not use_fla("torch", value, gated=True)
    with pytest.raises(ValueError, match="kernels='fla': expected a CUDA device, got cpu"):
        use_fla("fla", value, gated=False)
    with pytest.raises(ValueError, match="kernels='fla': expected a CUDA device"):
        delta_rule(value, value, value, torch.zeros(1, 2, 1), kernels="fla")


def test_unknown_kernels_are_refused_when_attaching():
    with pytest.raises(ValueError, match="kernels: expected one of auto, torch, fla, got 'cuda'"):
        check_kernels("cuda")
    with pytest.raises(ValueError, match="kernels: expected one of"):
        ahn.attach(base_model(), ahn.AHNConfig(), kernels="triton")


def test_the_choice_reaches_the_cells():
    model = ahn.attach(base_model(), ahn.AHNConfig(window=4, num_sinks=0), kernels="fla")
    with pytest.raises(ValueError, match="kernels='fla': expected a CUDA device"):
        model(torch.zeros(1, 9, dtype=torch.long))
