"""Which implementation runs: chosen openly, never a silent fallback from an explicit choice."""

from __future__ import annotations

from importlib.util import find_spec

import torch
from torch import Tensor

KERNELS = ("auto", "torch", "fla", "triton")
LARGEST_HEAD = 128  # of our chunk kernels
RECURRENT_LENGTH = 4  # up to here a loop over tokens beats preparing a chunk of 64


def check_kernels(kernels: str) -> str:
    """Return `kernels`; raise ValueError where it is not one of `KERNELS`."""
    if kernels not in KERNELS:
        raise ValueError(f"kernels: expected one of {', '.join(KERNELS)}, got {kernels!r}")
    return kernels


def choose(kernels: str, query: Tensor, value: Tensor, gated: bool) -> str:
    """Which of `torch`, `fla` and `triton` runs this call.

    `auto` takes the fastest that computes the same function and can run here, PyTorch at last;
    a choice by name raises ValueError with the reason where it cannot run.
    """
    if check_kernels(kernels) == "auto":
        can_run = (name for name, why_not in _WHY_NOT.items() if not why_not(query, value, gated))
        return next(can_run, "torch")
    reason = _WHY_NOT[kernels](query, value, gated) if kernels in _WHY_NOT else None
    if reason:
        raise ValueError(f"kernels='{kernels}': expected {reason}")
    return kernels


def _why_not_triton(query: Tensor, value: Tensor, gated: bool) -> str | None:
    if not query.is_cuda:
        return f"a CUDA device, got {query.device}"
    if find_spec("triton") is None:
        return "triton to be installed"
    if torch.cuda.get_device_capability(query.device) < (8, 0):
        return "a device of compute capability 8.0 or more"
    if {query.dtype, value.dtype} != {torch.bfloat16}:
        return f"bfloat16, got {query.dtype} and {value.dtype}"
    largest = max(query.shape[-1], value.shape[-1])
    if largest > LARGEST_HEAD:
        return f"a head size of at most {LARGEST_HEAD}, got {largest}"
    return None


def _why_not_fla(query: Tensor, value: Tensor, gated: bool) -> str | None:
    if not value.is_cuda:
        return f"a CUDA device, got {value.device}"
    if find_spec("fla") is None:
        return "flash-linear-attention to be installed (pip install fla-core)"
    if value.dtype not in (torch.float16, torch.bfloat16):
        return f"float16 or bfloat16 (its chunk kernels take no float32), got {value.dtype}"
    if value.shape[-1] > 256:
        return f"a head size of at most 256, got {value.shape[-1]}"
    if gated and torch.is_grad_enabled() and _gated_backward_is_broken(value.device):
        return "Triton >= 3.7.1 for gated gradients on this device"
    return None


def _gated_backward_is_broken(device: torch.device) -> bool:
    """Triton 3.4 to 3.7.0 miscompiles the gated chunk backward on Hopper (fla refuses it)."""
    import triton

    version = tuple(int(part) for part in triton.__version__.split("+")[0].split(".")[:3])
    hopper = torch.cuda.get_device_capability(device)[0] == 9
    return hopper and (3, 4) <= version < (3, 7, 1)


_WHY_NOT = {"triton": _why_not_triton, "fla": _why_not_fla}  # the fastest first
