"""A layer's attention and memory over paged caches, in PyTorch: the oracle for kernels."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor

from ahn.memory.cell import Cell
from ahn.ops.layout import compute_dtype
from ahn.ops.window_attention import window_attention
from ahn.serving.pages import RowLayout, read_rows, write_rows


@dataclass(frozen=True)
class PagedLayer:
    """One attention layer of an engine: its memory, its settings, and all requests' caches.

    Attributes:
        pages: `[N, G, block, width]`, rows of tokens, see `RowLayout`.
        states: `[N, H, K, V]`, what the cell holds of each request.
        scale: factor on the attention's scores.
    """

    cell: Cell
    layout: RowLayout
    pages: Tensor
    states: Tensor
    window: int
    num_sinks: int
    scale: float


class Request(NamedTuple):
    """One request's part of a step.

    Attributes:
        first, last: its new tokens are the step's rows `first` to `last - 1`.
        length: its tokens after the step.
        table: its blocks, in the order of positions.
        state: index of its state.
    """

    first: int
    last: int
    length: int
    table: Tensor
    state: int

    @property
    def before(self) -> int:
        """Its tokens before the step."""
        return self.length - (self.last - self.first)


@dataclass(frozen=True)
class Step:
    """What an engine computes at once: T new tokens of R requests, one request after the other.

    Attributes:
        starts: `[R + 1]`, the first new token of each, and T.
        lengths: `[R]`, tokens of each after the step.
        tables: `[R, blocks]`; slots: `[T]`, where the new tokens' rows go, see `write_rows`.
        states: `[R]`, index of each request's state.
    """

    starts: Tensor
    lengths: Tensor
    tables: Tensor
    slots: Tensor
    states: Tensor

    def requests(self) -> Iterator[Request]:
        """Those with new tokens. An engine may add rows without any, to fill a batch."""
        starts = self.starts.tolist()
        rows = zip(starts, starts[1:], self.lengths.tolist(), self.tables, self.states.tolist())
        return (Request(*row) for row in rows if row[0] < row[1])


def paged_attention(
    layer: PagedLayer, step: Step, query: Tensor, key: Tensor, value: Tensor, hidden: Tensor
) -> Tensor:
    """Sinks, window and memory of each request for its new tokens; writes pages and states.

    A request's first step finds its state as another request left it, and takes it for zeros.

    Args:
        query: `[T, H, K]`; key, value: `[T, G, K]`, after RoPE.
        hidden: `[T, D]`, the layer's input after its first norm.

    Returns:
        `[T, H, V]`, before the output projection.
    """
    own = hidden[None].to(layer.cell.o_proj.weight.dtype)
    rows = layer.layout.pack(key, value, layer.cell.write_gates(own)[0])
    write_rows(layer.pages, rows, step.slots)
    out = torch.zeros_like(query)
    read = torch.zeros_like(query, dtype=compute_dtype(query))
    for request in step.requests():
        tokens = slice(request.first, request.last)
        out[tokens] = _exact(layer, request, query[tokens])
        _write_and_read(layer, request, query[tokens], read[tokens])
    return out + layer.cell.project(read[None], own)[0].to(out.dtype)


def _exact(layer: PagedLayer, request: Request, query: Tensor) -> Tensor:
    """Softmax over sinks and window, `[C, H, V]`."""
    start = max(0, request.before - layer.window + 1)
    sinks = _rows(layer, request, 0, min(layer.num_sinks, request.length))[:2]
    window = _rows(layer, request, start, request.length)[:2]
    pairs = (x.transpose(0, 1)[None] for x in (*window, *sinks))
    heads_first = query.transpose(0, 1)[None]
    out = window_attention(
        heads_first, *pairs, window=layer.window, start=start, scale=layer.scale, kernels="torch"
    )
    return out[0].transpose(0, 1)


def _write_and_read(layer: PagedLayer, request: Request, query: Tensor, read: Tensor) -> None:
    """Write the tokens that leave the window, and put what the last queries read into `read`."""
    state = _state_of(layer, request)
    first = max(layer.num_sinks, request.before - layer.window)
    last = request.length - layer.window
    if last <= first:
        return
    key, value, gates = (x[None] for x in _rows(layer, request, first, last))
    readers = query[None, -(last - first) :]
    found, new = layer.cell.write_and_read(readers, key, value, gates, None, state[None])
    read[-(last - first) :] = found[0]
    state.copy_(new[0])


def _state_of(layer: PagedLayer, request: Request) -> Tensor:
    """A request's state `[H, K, V]`, zeros at first: another request may have left it as it is."""
    state = layer.states[request.state]
    return state if request.before else state.zero_()


def _rows(layer: PagedLayer, request: Request, first: int, last: int) -> tuple[Tensor, ...]:
    """Keys, values and raw gates of a request's tokens `first` to `last - 1`."""
    positions = torch.arange(first, last, device=layer.pages.device)
    rows = read_rows(layer.pages, positions, request.table)
    return layer.layout.unpack(rows)
