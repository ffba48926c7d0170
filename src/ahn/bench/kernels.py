"""Kernels of one layer: the memory beside flash-linear-attention, the window beside its peers."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from importlib.util import find_spec
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from ahn.bench.machine import median_seconds
from ahn.memory import registered_memories
from ahn.ops.delta_rule import delta_rule
from ahn.ops.layout import repeat_heads
from ahn.ops.ssd import ssd
from ahn.ops.window_attention import window_attention

Work = Callable[[], Any]
Case = tuple[str, str, Work]  # kernel, by whom, what to time


@torch.no_grad()
def bench_kernels(
    *,
    tokens: int,
    heads: int = 16,
    groups: int = 2,
    dim: int = 128,
    window: int = 32640,
    chunk: int = 8192,
    peers: bool = True,
    device: torch.device,
    dtype: torch.dtype,
) -> list[dict[str, Any]]:
    """One row a kernel and implementation: median milliseconds on the same random inputs.

    The recurrences read `tokens` tokens, then a prefill's chunk; attention a chunk after a full
    window. Without `peers`, ours alone.
    """
    sizes = (heads, groups, dim, dtype)
    with torch.device(device):
        cases = [*_reading(tokens, *sizes, peers), *_reading(chunk, *sizes, peers)]
        cases += [*_attention(window, chunk, *sizes, peers)]
    rows = []
    for kernel, implementation, work in cases:
        seconds = median_seconds(work, device, warm_up=2)
        rows.append({"kernel": kernel, "by": implementation, "ms": seconds * 1e3})
    return rows


@dataclass(frozen=True)
class _Recurrence:
    """A memory's recurrence by someone, and what it reads."""

    memory: str
    by: str
    run: Callable[..., tuple[Tensor, Tensor]]
    tensors: dict[str, Tensor]

    def read(self) -> None:
        self.run(**self.tensors)


def _reading(tokens: int, *sizes: Any) -> Iterator[Case]:
    for each in _recurrences(tokens, *sizes):
        yield f"{each.memory}, {tokens} tokens", each.by, each.read


def _recurrences(
    tokens: int, heads: int, groups: int, dim: int, dtype: torch.dtype, peers: bool
) -> Iterator[_Recurrence]:
    key, value = torch.randn(2, 1, tokens, groups, dim, dtype=dtype)
    beta, step, decay = torch.rand(3, 1, tokens, heads)
    text = {"query": torch.randn(1, tokens, heads, dim, dtype=dtype), "key": key, "value": value}
    text["initial_state"] = torch.randn(1, heads, dim, dim)
    gates = {"beta": beta, "log_decay": -0.1 * decay, "dt": step}
    known = [*_ours(text, gates)]
    if peers and key.is_cuda and find_spec("fla") is not None and dtype != torch.float32:
        known += [*_fla(text, gates)]
    for name in registered_memories():
        yield from (each for each in known if each.memory == name)


def _ours(text: dict[str, Tensor], gates: dict[str, Tensor]) -> Iterator[_Recurrence]:
    rule = partial(delta_rule, normalize=True, scale=text["key"].shape[-1] ** -0.5)
    state_space = partial(ssd, normalize=True)
    beta, log_decay, step = ({name: gate} for name, gate in gates.items())
    yield _Recurrence("GatedDeltaNet", "ahn", rule, {**text, **beta, **log_decay})
    yield _Recurrence("DeltaNet", "ahn", rule, {**text, **beta})
    yield _Recurrence("Mamba2", "ahn", state_space, {**text, **log_decay, **step})


def _fla(text: dict[str, Tensor], gates: dict[str, Tensor]) -> Iterator[_Recurrence]:
    """Its chunk kernels on what they take: keys and values already repeated for every head.

    Mamba2's form does not normalise, so it is given queries and keys that are.
    """
    from fla.ops.delta_rule import chunk_delta_rule
    from fla.ops.gated_delta_rule import chunk_gated_delta_rule
    from fla.ops.simple_gla import chunk_simple_gla

    by, query = "flash-linear-attention", text["query"]
    key, value = (repeat_heads(text[name], query.shape[2]) for name in ("key", "value"))
    raw = {"q": query, "k": key, "v": value, "initial_state": text["initial_state"]}
    units = {**raw, "q": F.normalize(query, dim=-1), "k": F.normalize(key, dim=-1)}
    beta, g = {"beta": gates["beta"].to(query.dtype)}, {"g": gates["log_decay"]}
    options = {"output_final_state": True, "use_qk_l2norm_in_kernel": True}
    gated, plain = (partial(f, **options) for f in (chunk_gated_delta_rule, chunk_delta_rule))
    state_space = partial(chunk_simple_gla, output_final_state=True, scale=1.0)
    yield _Recurrence("GatedDeltaNet", by, gated, {**raw, **beta, **g})
    yield _Recurrence("DeltaNet", by, plain, {**raw, **beta})
    yield _Recurrence("Mamba2", by, state_space, {**units, **g})


def _attention(
    window: int, chunk: int, heads: int, groups: int, dim: int, dtype: torch.dtype, peers: bool
) -> Iterator[Case]:
    sinks = 128
    query = torch.randn(1, chunk, heads, dim, dtype=dtype).transpose(1, 2)
    key, value = torch.randn(2, 1, window + chunk, groups, dim, dtype=dtype).transpose(2, 3)
    sink_key, sink_value = torch.randn(2, 1, groups, sinks, dim, dtype=dtype)
    tensors = (query, key, value, sink_key, sink_value)
    name = f"window attention, {chunk} queries, {window} + {sinks} keys"
    yield name, "ahn", lambda: window_attention(*tensors, window=window, start=sinks)
    if not peers:
        return
    causal = f"causal attention, {window} queries and keys"
    square = torch.randn(1, window, heads, dim, dtype=dtype).transpose(1, 2)
    yield (
        causal,
        "torch SDPA",
        lambda: F.scaled_dot_product_attention(
            square, key[:, :, :window], value[:, :, :window], is_causal=True, enable_gqa=True
        ),
    )
