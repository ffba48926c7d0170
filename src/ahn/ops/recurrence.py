"""What the recurrences share: where their kernels run, and flash-linear-attention's arguments."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from ahn.ops.backends import (
    Backend,
    device_unsupported_reason,
    dtype_unsupported_reason,
    register,
)
from ahn.ops.layout import repeat_heads

RECURRENT_LENGTH = 4  # up to here a loop over tokens is faster than preparing a chunk of 64
LARGEST_HEAD, LARGEST_TRAINED_HEAD = 256, 128  # of our chunk kernels
LARGEST_FLA_HEAD = 256


def register_recurrence(op: str) -> None:
    """Add the rows of a recurrence, whose `choose` is given query, value and whether it decays."""
    register(Backend(op, "triton", 2, _triton_unsupported_reason))
    register(Backend(op, "fla", 1, _fla_unsupported_reason))


def fla_arguments(
    query: Tensor, key: Tensor, value: Tensor, initial_state: Tensor | None, normalize: bool
) -> dict[str, Any]:
    """Keyword arguments of fla's recurrences, `[B, T, H, *]`, in the dtype of the values."""
    from fla.modules.norm.l2norm import l2norm

    heads, dtype = query.shape[2], value.dtype
    query, key = (x.to(dtype).contiguous() for x in (query, key))
    if normalize:
        query, key = l2norm(query), l2norm(key)
    return {
        "q": query,
        "k": repeat_heads(key, heads),
        "v": repeat_heads(value, heads).contiguous(),
        "initial_state": initial_state,
        "output_final_state": True,
    }


def _triton_unsupported_reason(query: Tensor, value: Tensor, gated: bool) -> str | None:
    largest = LARGEST_TRAINED_HEAD if torch.is_grad_enabled() else LARGEST_HEAD
    return (
        device_unsupported_reason(query, capability=(8, 0))
        or dtype_unsupported_reason((torch.bfloat16,), query, value)
        or _head_unsupported_reason(largest, query, value)
    )


def _fla_unsupported_reason(query: Tensor, value: Tensor, gated: bool) -> str | None:
    # Its chunk kernels take no float32.
    return (
        device_unsupported_reason(value, "fla")
        or dtype_unsupported_reason((torch.float16, torch.bfloat16), value)
        or _head_unsupported_reason(LARGEST_FLA_HEAD, value)
        or _fla_gradient_unsupported_reason(value.device, gated)
    )


def _head_unsupported_reason(largest: int, *tensors: Tensor) -> str | None:
    size = max(x.shape[-1] for x in tensors)
    return f"a head size of at most {largest}, got {size}" if size > largest else None


def _fla_gradient_unsupported_reason(device: torch.device, gated: bool) -> str | None:
    """Triton 3.4 to 3.7.0 miscompiles the gated chunk backward on Hopper (fla refuses it)."""
    if not (gated and torch.is_grad_enabled()) or torch.cuda.get_device_capability(device)[0] != 9:
        return None
    import triton

    version = tuple(int(part) for part in triton.__version__.split("+")[0].split(".")[:3])
    if (3, 4) <= version < (3, 7, 1):
        return f"Triton >= 3.7.1 for gated gradients on Hopper, got {triton.__version__}"
    return None
