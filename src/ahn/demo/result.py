"""The demo's figures: everything the table, the picture and the JSON line say."""

from __future__ import annotations

import math
import os
import platform
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

import torch
import transformers
from torch import Tensor

from ahn.config import AHNConfig
from ahn.demo.documents import Document
from ahn.evaluation import beyond_budget, bits_per_byte

FULL, WINDOW, SAME_BYTES = "full attention", "window + sinks", "window, as many bytes"
POINTS = 64  # of each curve
SMOOTHING = 0.06  # half width of the running mean, as a share of the longest document


@dataclass(frozen=True)
class Measured:
    """The figures of one method over all documents."""

    losses: list[Tensor]  # of each document, [T - 1], on the CPU
    cache_sizes: list[tuple[int, int]]  # of the longest document: tokens so far, bytes of the cache
    tokens_per_second: float
    found: list[bool] = field(default_factory=list)  # of each fact that was asked for


@dataclass(frozen=True)
class Row:
    """One line of the table."""

    name: str
    found: int  # facts
    bits_per_byte: float  # of the bytes beyond the budget
    recovered: float | None  # share of the gap between window and full attention; None: no gap
    cache_bytes: int  # at the end of the longest document
    tokens_per_second: float


@dataclass(frozen=True)
class Training:
    """What the live distillation did; the losses are KL in nats per token, one of each step."""

    row: str
    steps: int
    tokens: int
    seconds: float
    losses: list[float]


@dataclass(frozen=True)
class DemoResult:
    """All figures of one run; `to_dict` is what the JSON line holds."""

    memory: dict[str, Any]  # window, num_sinks, ... of the shipped memories
    documents: list[dict[str, Any]]  # name, tokens, bytes, and bytes beyond the budget
    bytes_beyond_budget: int
    facts: int  # asked for, all of which have left the window
    rows: list[Row]
    training: Training | None
    positions: list[int]  # tokens, of the curves of bits per byte
    bits_per_byte_by_position: dict[str, list[float]]
    held_by_length: dict[str, list[tuple[int, int]]]
    seed: int
    seconds: float
    environment: dict[str, Any]

    def row(self, name: str) -> Row:
        """The line of the table with that name."""
        return next(row for row in self.rows if row.name == name)

    def to_dict(self) -> dict[str, Any]:
        """Plain values, ready for JSON."""
        return asdict(self)


def summarise(
    measurements: Mapping[str, Measured],
    documents: Sequence[Document],
    config: AHNConfig,
    training: Training | None,
    *,
    seed: int,
    seconds: float,
) -> DemoResult:
    """All figures from the measurements of `FULL`, of `WINDOW` and of any memories."""
    lengths = [document.lengths for document in documents]
    rates = {
        name: _beyond(measured.losses, lengths, config.budget)
        for name, measured in measurements.items()
    }
    positions = _positions(max(map(len, lengths)))
    beyond = [int(x[config.budget :].sum()) for x in lengths]
    return DemoResult(
        memory=config.to_dict(),
        documents=[
            {"name": d.name, "tokens": len(d), "bytes": int(d.lengths.sum()), "beyond_budget": size}
            for d, size in zip(documents, beyond)
        ],
        bytes_beyond_budget=sum(beyond),
        facts=len(measurements[FULL].found),
        rows=[_row(name, measured, rates) for name, measured in measurements.items()],
        training=training,
        positions=positions,
        bits_per_byte_by_position={
            name: _curve(measured.losses, lengths, positions)
            for name, measured in measurements.items()
        },
        held_by_length={name: measured.cache_sizes for name, measured in measurements.items()},
        seed=seed,
        seconds=round(seconds, 1),
        environment=_environment(),
    )


def _beyond(losses: Sequence[Tensor], lengths: Sequence[Tensor], budget: int) -> float:
    parts = [beyond_budget(*pair, budget) for pair in zip(losses, lengths)]
    nats, sizes = (torch.cat(x) for x in zip(*parts))
    return bits_per_byte(nats, int(sizes.sum()))


def _row(name: str, measured: Measured, rates: Mapping[str, float]) -> Row:
    gap = rates[WINDOW] - rates[FULL]
    return Row(
        name=name,
        found=sum(measured.found),
        bits_per_byte=rates[name],
        recovered=(rates[WINDOW] - rates[name]) / gap if gap > 0 else None,
        cache_bytes=measured.cache_sizes[-1][1],
        tokens_per_second=measured.tokens_per_second,
    )


def _positions(length: int) -> list[int]:
    """At most `POINTS` positions, evenly over a document of that length."""
    step = -(-length // POINTS)
    return list(range(step, length, step))


def _curve(
    losses: Sequence[Tensor], lengths: Sequence[Tensor], positions: Sequence[int]
) -> list[float]:
    """Bits per byte around each position, over all documents that reach it."""
    longest = max(map(len, lengths))
    nats, sizes = torch.zeros(longest, dtype=torch.double), torch.zeros(longest)
    for loss, length in zip(losses, lengths):
        nats[1 : len(length)] += loss
        sizes[: len(length)] += length
    reach = max(1, math.ceil(SMOOTHING * longest))
    spans = [slice(max(1, p - reach), p + reach + 1) for p in positions]
    return [round(bits_per_byte(nats[span], int(sizes[span].sum())), 4) for span in spans]


def _environment() -> dict[str, Any]:
    from ahn import __version__

    return {
        "ahn": __version__,
        "torch": torch.__version__,
        "transformers": transformers.__version__,
        "python": platform.python_version(),
        "machine": platform.machine(),
        "cpus": os.cpu_count(),
        "threads": torch.get_num_threads(),
    }
