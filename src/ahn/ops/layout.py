"""Shapes, dtypes and head layout, the same for every recurrence."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import ParamSpec, TypeVar

import torch
from torch import Tensor

P = ParamSpec("P")
R = TypeVar("R")


def without_autocast(recurrence: Callable[P, R]) -> Callable[P, R]:
    """Decorator that turns autocast off: it would round the state's products to half precision."""

    @functools.wraps(recurrence)
    def run(*args: P.args, **kwargs: P.kwargs) -> R:
        device = next(x for x in (*args, *kwargs.values()) if isinstance(x, Tensor)).device.type
        if not torch.amp.is_autocast_available(device):
            return recurrence(*args, **kwargs)
        with torch.autocast(device, enabled=False):
            return recurrence(*args, **kwargs)

    return run


def compute_dtype(*tensors: Tensor) -> torch.dtype:
    """The dtype of a recurrence: float32, or float64 where an input is float64."""
    double = any(tensor.dtype == torch.float64 for tensor in tensors)
    return torch.float64 if double else torch.float32


def l2_normalize(x: Tensor) -> Tensor:
    """x / sqrt(sum x^2 + 1e-6) over the last dimension, in the recurrence's compute dtype."""
    x = x.to(compute_dtype(x))
    return x * torch.rsqrt(x.square().sum(-1, keepdim=True) + 1e-6)


def repeat_heads(x: Tensor, num_heads: int, dim: int = 2) -> Tensor:
    """Repeat grouped heads along `dim`, `[B, T, G, K] -> [B, T, H, K]`; no copy where `G == H`.

    Raises ValueError where H is not a multiple of G.
    """
    groups = x.shape[dim]
    if num_heads % groups:
        raise ValueError(f"heads: expected a multiple of {groups} key-value heads, got {num_heads}")
    return x if groups == num_heads else x.repeat_interleave(num_heads // groups, dim=dim)


def check_shapes(query: Tensor, key: Tensor, value: Tensor, initial_state: Tensor | None) -> None:
    """Raise ValueError where the inputs of a recurrence do not fit; shapes as in `prepare`."""
    batch, length, heads, dim = query.shape
    if key.shape[:2] != (batch, length) or value.shape[:3] != key.shape[:3] or key.shape[3] != dim:
        raise ValueError(
            f"recurrence: expected key [{batch}, {length}, G, {dim}] and value of its heads, "
            f"got key {list(key.shape)} and value {list(value.shape)}"
        )
    if heads % key.shape[2]:
        raise ValueError(
            f"heads: expected a multiple of {key.shape[2]} key-value heads, got {heads}"
        )
    expected = (batch, heads, dim, value.shape[-1])
    if initial_state is not None and initial_state.shape != expected:
        raise ValueError(
            f"initial_state: expected {list(expected)}, got {list(initial_state.shape)}"
        )


def prepare(
    query: Tensor, key: Tensor, value: Tensor, initial_state: Tensor | None
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Inputs of a recurrence in its compute dtype, with heads repeated, and its initial state.

    Args:
        query: `[B, T, H, K]`; key: `[B, T, G, K]`; value: `[B, T, G, V]`.
        initial_state: `[B, H, K, V]`, or None for zeros.

    Raises ValueError where shapes do not fit.
    """
    check_shapes(query, key, value, initial_state)
    heads = query.shape[2]
    dtype = compute_dtype(query, value)
    state = (
        query.new_zeros(query.shape[0], heads, query.shape[3], value.shape[-1], dtype=dtype)
        if initial_state is None
        else initial_state.to(dtype)
    )
    key, value = (repeat_heads(x, heads).to(dtype) for x in (key, value))
    return query.to(dtype), key, value, state
