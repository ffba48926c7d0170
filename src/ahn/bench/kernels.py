"""Kernels of one layer in inference, compared with other libraries'."""

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
from ahn.io.progress import Report, counted
from ahn.memory import registered_memories
from ahn.ops.delta_rule import delta_rule
from ahn.ops.layout import repeat_heads
from ahn.ops.ssd import ssd
from ahn.ops.window_attention import window_attention

Work = Callable[[], Any]
Case = tuple[str, str, Work]  # kernel, implementation, what to time


@torch.no_grad()
def bench_kernels(
    *,
    tokens: int,
    heads: int = 16,
    groups: int = 2,
    dim: int = 128,
    window: int = 32640,
    prefill_chunk_size: int = 8192,
    peers: bool = True,
    device: torch.device,
    dtype: torch.dtype,
    report: Report | None = None,
) -> list[dict[str, Any]]:
    """One row a kernel and implementation: median milliseconds on the same random inputs.

    The recurrences run over `tokens` tokens and over a prefill chunk; attention runs over a chunk
    after a full window.

    Args:
        peers: measure other libraries' kernels too.
        report: told how many rows are measured.
    """
    sizes = (heads, groups, dim, dtype)
    with torch.device(device):
        cases = [
            *_recurrence_cases(tokens, *sizes, peers),
            *_recurrence_cases(prefill_chunk_size, *sizes, peers),
            *_attention_cases(window, prefill_chunk_size, *sizes, peers),
        ]
    rows = []
    for kernel, implementation, work in counted(cases, "kernels", report):
        seconds = median_seconds(work, device, warm_up=2)
        rows.append({"kernel": kernel, "by": implementation, "ms": seconds * 1e3})
    return rows


@dataclass(frozen=True)
class _Recurrence:
    """One implementation of a cell's recurrence, and its inputs."""

    memory: str
    by: str
    function: Callable[..., tuple[Tensor, Tensor]]
    tensors: dict[str, Tensor]

    def run(self) -> None:
        self.function(**self.tensors)


def _recurrence_cases(tokens: int, *sizes: Any) -> Iterator[Case]:
    for recurrence in _recurrences(tokens, *sizes):
        yield f"{recurrence.memory}, {tokens} tokens", recurrence.by, recurrence.run


def _recurrences(
    tokens: int, heads: int, groups: int, dim: int, dtype: torch.dtype, peers: bool
) -> Iterator[_Recurrence]:
    key, value = torch.randn(2, 1, tokens, groups, dim, dtype=dtype)
    beta, dt, decay = torch.rand(3, 1, tokens, heads)
    inputs = {"query": torch.randn(1, tokens, heads, dim, dtype=dtype), "key": key, "value": value}
    inputs["initial_state"] = torch.randn(1, heads, dim, dim)
    gates = {"beta": beta, "log_decay": -0.1 * decay, "dt": dt}
    measured = [*_ours(inputs, gates)]
    if peers and key.is_cuda and find_spec("fla") is not None and dtype != torch.float32:
        measured += [*_fla(inputs, gates)]
    for name in registered_memories():
        yield from (recurrence for recurrence in measured if recurrence.memory == name)


def _ours(inputs: dict[str, Tensor], gates: dict[str, Tensor]) -> Iterator[_Recurrence]:
    rule = partial(delta_rule, normalize=True, scale=inputs["key"].shape[-1] ** -0.5)
    state_space = partial(ssd, normalize=True)
    beta, log_decay, dt = ({name: gate} for name, gate in gates.items())
    yield _Recurrence("GatedDeltaNet", "ahn", rule, {**inputs, **beta, **log_decay})
    yield _Recurrence("DeltaNet", "ahn", rule, {**inputs, **beta})
    yield _Recurrence("Mamba2", "ahn", state_space, {**inputs, **log_decay, **dt})


def _fla(inputs: dict[str, Tensor], gates: dict[str, Tensor]) -> Iterator[_Recurrence]:
    """Its chunk kernels, which take keys and values repeated for every query head.

    The one for Mamba2 does not normalise; its queries and keys are normalised in advance.
    """
    from fla.ops.delta_rule import chunk_delta_rule
    from fla.ops.gated_delta_rule import chunk_gated_delta_rule
    from fla.ops.simple_gla import chunk_simple_gla

    by, query = "flash-linear-attention", inputs["query"]
    key, value = (repeat_heads(inputs[name], query.shape[2]) for name in ("key", "value"))
    raw = {"q": query, "k": key, "v": value, "initial_state": inputs["initial_state"]}
    normalized = {**raw, "q": F.normalize(query, dim=-1), "k": F.normalize(key, dim=-1)}
    beta, g = {"beta": gates["beta"].to(query.dtype)}, {"g": gates["log_decay"]}
    options = {"output_final_state": True, "use_qk_l2norm_in_kernel": True}
    gated, plain = (partial(f, **options) for f in (chunk_gated_delta_rule, chunk_delta_rule))
    state_space = partial(chunk_simple_gla, output_final_state=True, scale=1.0)
    yield _Recurrence("GatedDeltaNet", by, gated, {**raw, **beta, **g})
    yield _Recurrence("DeltaNet", by, plain, {**raw, **beta})
    yield _Recurrence("Mamba2", by, state_space, {**normalized, **g})


def _attention_cases(
    window: int, queries: int, heads: int, groups: int, dim: int, dtype: torch.dtype, peers: bool
) -> Iterator[Case]:
    sinks = 128
    query = torch.randn(1, queries, heads, dim, dtype=dtype).transpose(1, 2)
    key, value = torch.randn(2, 1, window + queries, groups, dim, dtype=dtype).transpose(2, 3)
    sink_key, sink_value = torch.randn(2, 1, groups, sinks, dim, dtype=dtype)
    tensors = (query, key, value, sink_key, sink_value)
    name = f"window attention, {queries} queries, {window} + {sinks} keys"
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
