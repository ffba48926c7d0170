"""Kernels of one layer: the memory beside flash-linear-attention, the window beside its peers."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from importlib.util import find_spec
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from ahn.bench.machine import median_seconds
from ahn.memory import registered_cells
from ahn.ops.delta_rule import delta_rule
from ahn.ops.layout import repeat_heads
from ahn.ops.ssd import ssd
from ahn.ops.window_attention import window_attention

Work = Callable[[], Any]


@torch.no_grad()
def bench_kernels(
    *,
    tokens: int,
    heads: int = 16,
    groups: int = 2,
    dim: int = 128,
    window: int = 32640,
    chunk: int = 8192,
    device: torch.device,
    dtype: torch.dtype,
) -> list[dict[str, Any]]:
    """One row a kernel and implementation: median milliseconds on the same random inputs.

    The recurrences read `tokens` tokens, then a prefill's chunk; attention a chunk after a full
    window.
    """
    rows = []
    with torch.device(device):
        cases = [*_recurrences(tokens, heads, groups, dim, dtype)]
        cases += [*_recurrences(chunk, heads, groups, dim, dtype)]
        cases += [*_attention(window, chunk, heads, groups, dim, dtype)]
    for kernel, implementation, work in cases:
        seconds = median_seconds(work, device, warm_up=2)
        rows.append({"kernel": kernel, "by": implementation, "ms": seconds * 1e3})
    return rows


def _recurrences(
    tokens: int, heads: int, groups: int, dim: int, dtype: torch.dtype
) -> Iterator[tuple[str, str, Work]]:
    query = torch.randn(1, tokens, heads, dim, dtype=dtype)
    key, value = torch.randn(2, 1, tokens, groups, dim, dtype=dtype)
    beta, step = torch.rand(2, 1, tokens, heads)
    log_decay = -0.1 * torch.rand(1, tokens, heads)
    state = torch.randn(1, heads, dim, dim)
    scale = dim**-0.5
    ours: dict[str, Work] = {
        "GatedDeltaNet": lambda: delta_rule(
            query, key, value, beta, log_decay, state, normalize=True, scale=scale
        ),
        "DeltaNet": lambda: delta_rule(
            query, key, value, beta, None, state, normalize=True, scale=scale
        ),
        "Mamba2": lambda: ssd(query, key, value, log_decay, state, step=step, normalize=True),
    }
    peers = _fla(query, key, value, beta, log_decay, state) if _has_fla(query) else {}
    for name in [cell for cell in registered_cells() if cell in ours]:
        kernel = f"{name}, {tokens} tokens"
        yield kernel, "ahn", ours[name]
        if name in peers:
            yield kernel, "flash-linear-attention", peers[name]


def _has_fla(query: Tensor) -> bool:
    return query.is_cuda and find_spec("fla") is not None and query.dtype != torch.float32


def _fla(
    query: Tensor, key: Tensor, value: Tensor, beta: Tensor, log_decay: Tensor, state: Tensor
) -> dict[str, Work]:
    """Its chunk kernels on what they take: keys and values already repeated for every head.

    Mamba2's form does not normalise, so it is given queries and keys that are.
    """
    from fla.ops.delta_rule import chunk_delta_rule
    from fla.ops.gated_delta_rule import chunk_gated_delta_rule
    from fla.ops.simple_gla import chunk_simple_gla

    heads = query.shape[2]
    k, v = (repeat_heads(x, heads) for x in (key, value))
    known = {"v": v, "initial_state": state, "output_final_state": True}
    raw = {"q": query, "k": k, "use_qk_l2norm_in_kernel": True, **known}
    units = {"q": F.normalize(query, dim=-1), "k": F.normalize(k, dim=-1), **known}
    beta = beta.to(query.dtype)
    return {
        "GatedDeltaNet": lambda: chunk_gated_delta_rule(**raw, g=log_decay, beta=beta),
        "DeltaNet": lambda: chunk_delta_rule(**raw, beta=beta),
        "Mamba2": lambda: chunk_simple_gla(**units, g=log_decay, scale=1.0),
    }


def _attention(
    window: int, chunk: int, heads: int, groups: int, dim: int, dtype: torch.dtype
) -> Iterator[tuple[str, str, Work]]:
    sinks = 128
    query = torch.randn(1, chunk, heads, dim, dtype=dtype).transpose(1, 2)
    key, value = torch.randn(2, 1, window + chunk, groups, dim, dtype=dtype).transpose(2, 3)
    sink_key, sink_value = torch.randn(2, 1, groups, sinks, dim, dtype=dtype)
    tensors = (query, key, value, sink_key, sink_value)
    name = f"window attention, {chunk} queries, {window} + {sinks} keys"
    yield name, "ahn", lambda: window_attention(*tensors, window=window, start=sinks)
    causal = f"causal attention, {window} queries and keys"
    square = torch.randn(1, window, heads, dim, dtype=dtype).transpose(1, 2)
    yield (
        causal,
        "torch SDPA",
        lambda: F.scaled_dot_product_attention(
            square, key[:, :, :window], value[:, :, :window], is_causal=True, enable_gqa=True
        ),
    )
