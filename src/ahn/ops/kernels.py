"""Which implementation runs: chosen openly, never a silent fallback from an explicit choice."""

from __future__ import annotations

from importlib.util import find_spec

import torch
from torch import Tensor

KERNELS = ("auto", "torch", "fla")
RECURRENT_LENGTH = 4  # up to here a loop over tokens beats preparing a chunk of 64


def check_kernels(kernels: str) -> str:
    """Return `kernels`; raise ValueError where it is not one of `KERNELS`."""
    if kernels not in KERNELS:
        raise ValueError(f"kernels: expected one of {', '.join(KERNELS)}, got {kernels!r}")
    return kernels


def use_fla(kernels: str, value: Tensor, gated: bool) -> bool:
    """Whether flash-linear-attention runs this call.

    `auto` takes it where it computes the same function and falls back to PyTorch elsewhere;
    `fla` raises ValueError with the reason where it cannot run.
    """
    if check_kernels(kernels) == "torch":
        return False
    reason = _why_not_fla(value, gated)
    if reason and kernels == "fla":
        raise ValueError(f"kernels='fla': expected {reason}")
    return reason is None


def _why_not_fla(value: Tensor, gated: bool) -> str | None:
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
