"""Kernels of one layer in training: forward and backward pass, compared with other libraries."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ahn.bench.machine import median_seconds, synchronize
from ahn.io.progress import Report, counted
from ahn.memory import Evicted, LinearCell, build_memory, memory_by_name, registered_memories
from ahn.ops.window_attention import window_attention
from ahn.ops.window_attention.reference import blocked_window_attention
from ahn.training.losses import head_losses

Case = tuple[str, str, Callable[[], Tensor], list[Tensor]]
VOCABULARY, WIDTH = 151936, 2048  # of the LM head that is measured: Qwen2.5-3B's


def bench_gradients(
    *,
    tokens: int,
    heads: int,
    groups: int,
    dim: int,
    window: int,
    device: torch.device,
    dtype: torch.dtype,
    report: Report | None = None,
) -> list[dict[str, Any]]:
    """One row a kernel and implementation: milliseconds of both passes on random inputs.

    Args:
        report: told how many kernels are measured; the head comes behind them.
    """
    rows = []
    sizes = (tokens, heads, groups, dim, dtype)
    with torch.device(device):
        cases = [*_attention(window, *sizes), *_cells(*sizes)]
        for kernel, by, forward, leaves in counted(cases, "kernels", report):
            row: dict[str, Any] = {"kernel": f"{kernel}, trained", "by": by}
            try:
                rows.append(row | _both_passes(forward, leaves, device))
            except RuntimeError as error:  # an implementation that cannot run here
                rows.append({**row, "error": str(error).splitlines()[0]})
        rows.append(_head(tokens, device, dtype))
    return rows


def _both_passes(
    forward: Callable[[], Tensor], leaves: list[Tensor], device: torch.device
) -> dict[str, float]:
    """Milliseconds of the forward and of the backward pass, and of both."""
    gradient = torch.randn_like(out := forward())
    synchronize(device)

    def backward() -> None:
        torch.autograd.grad(out, leaves, gradient, retain_graph=True)

    times = {"forward_ms": median_seconds(forward, device, warm_up=2) * 1e3}
    times["backward_ms"] = median_seconds(backward, device, warm_up=2) * 1e3
    return {"ms": sum(times.values()), **times}


def _attention(
    window: int, tokens: int, heads: int, groups: int, dim: int, dtype: torch.dtype
) -> Iterator[Case]:
    query = torch.randn(1, tokens, heads, dim, dtype=dtype).transpose(1, 2).requires_grad_()
    key, value = (
        torch.randn(1, tokens, groups, dim, dtype=dtype).transpose(1, 2).requires_grad_()
        for _ in "kv"
    )
    leaves = [query, key, value]
    no_sinks = key.detach()[:, :, :0]

    def ours() -> Tensor:
        return window_attention(query, key, value, no_sinks, no_sinks, window=window, start=0)

    def blocks() -> Tensor:
        return blocked_window_attention(query, key, value, no_sinks, no_sinks, window, 0, None, 0.0)

    def flash() -> Tensor:
        rows = (x.transpose(1, 2) for x in leaves)
        return torch.ops.aten._flash_attention_forward(
            *rows, None, None, tokens, tokens, 0.0, True, False, window_size_left=window - 1,
            window_size_right=0,
        )[0]  # fmt: skip

    def full() -> Tensor:
        return F.scaled_dot_product_attention(query, key, value, is_causal=True, enable_gqa=True)

    yield "window", "ahn", ours, leaves
    if query.is_cuda:
        yield "window", "flash attention 2", flash, leaves
    yield "window", "blocks with masks", blocks, leaves
    yield "full", "scaled_dot_product_attention", full, leaves


def _cells(tokens: int, heads: int, groups: int, dim: int, dtype: torch.dtype) -> Iterator[Case]:
    """A cell's full forward, float32 weights under autocast."""
    hidden = torch.randn(1, tokens, heads * dim, dtype=dtype, requires_grad=True)
    query = torch.randn(1, tokens, heads, dim, dtype=dtype, requires_grad=True)
    key, value = (
        torch.randn(1, tokens, groups, dim, dtype=dtype).transpose(1, 2).requires_grad_()
        for _ in "kv"
    )
    evicted = Evicted(key, value, None, torch.arange(tokens, device=key.device)[None], None)
    for name in filter(_has_kernels, registered_memories()):
        cell = build_memory(name, heads * dim, heads, dim)
        nn.init.normal_(cell.o_proj.weight, std=0.02)

        def forward(cell: nn.Module = cell) -> Tensor:
            with torch.autocast(hidden.device.type, dtype, enabled=dtype != torch.float32):
                return cell(hidden, query, evicted, {}).read

        yield name, "ahn", forward, [hidden, query, key, value, *cell.parameters()]


def _head(tokens: int, device: torch.device, dtype: torch.dtype) -> dict[str, Any]:
    """Losses of a frozen LM head, whose gradient is computed in the forward pass."""
    width = WIDTH if device.type == "cuda" else 64
    head = nn.Linear(width, VOCABULARY, bias=False, dtype=dtype).requires_grad_(False)
    student, teacher = torch.randn(2, tokens, width, dtype=dtype)
    student.requires_grad_()
    seconds = median_seconds(lambda: head_losses(head, student, teacher), device, repeats=3)
    return {"kernel": "head and KL, trained", "by": "ahn", "ms": seconds * 1e3}


def _has_kernels(name: str) -> bool:
    return issubclass(memory_by_name(name), LinearCell)
