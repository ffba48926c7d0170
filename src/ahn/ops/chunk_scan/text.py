"""A text in chunks: what the kernels are given of it."""

from __future__ import annotations

from dataclasses import dataclass, fields
from functools import cached_property
from typing import Any

import torch
from torch import Tensor

CHUNK = 64
COLUMNS = 64  # of a state, a program
NARROWEST = 64


@dataclass(frozen=True)
class Rule:
    """Which recurrence it is.

    Attributes:
        delta: a token writes what its value differs from what the state knows; else its value.
        normalize: queries and keys are divided by their lengths first.
        scale: of the queries.
    """

    delta: bool
    normalize: bool
    scale: float = 1.0


@dataclass(frozen=True)
class Chunks:
    """What was made of queries, keys and gates; N chunks of `CHUNK` tokens.

    Attributes:
        query_scale, key_scale: `[B, H, N CHUNK]` float32, factors of queries and keys.
        strength: `[B, H, N CHUNK]` float32, of the writes; 0 beyond the text.
        total: `[B, H, N CHUNK]` float32, log2 of the decay since a chunk's start; None: no decay.
        scores: `[B, H, N, CHUNK, CHUNK]`, makes what queries read of the chunk's errors.
        solved: `[B, H, N, CHUNK, CHUNK]`, makes writes of errors; None where they are the same.
    """

    query_scale: Tensor
    key_scale: Tensor
    strength: Tensor
    total: Tensor | None
    scores: Tensor
    solved: Tensor | None

    @property
    def tensors(self) -> list[Tensor | None]:
        return [getattr(self, field.name) for field in fields(self)]


@dataclass(frozen=True)
class Text:
    """query `[B, T, H, K]`, key `[B, T, G, K]` and value `[B, T, G, V]`, in chunks."""

    query: Tensor
    key: Tensor
    value: Tensor
    chunks: Chunks

    @property
    def count(self) -> int:
        return self.chunks.scores.shape[2]

    @cached_property
    def shape(self) -> tuple[int, int, int, int]:
        """B, H, K, V: of a state."""
        batch, _, heads, dim = self.query.shape
        return batch, heads, dim, self.value.shape[-1]

    @cached_property
    def blocks(self) -> int:
        """Programs that share one head's state."""
        return -(-self.value.shape[-1] // COLUMNS)

    @cached_property
    def arguments(self) -> list[Any]:
        """The first arguments of every kernel; what it does not read stands in for None."""
        inputs = (self.query, self.key, self.value)
        strides = [stride for x in inputs for stride in x.stride()[:3]]
        parts = [self.chunks.key_scale if x is None else x for x in self.chunks.tensors]
        return [*inputs, *strides, *parts]

    @cached_property
    def counts(self) -> tuple[int, int, int, int]:
        """T, N, H, G."""
        return self.query.shape[1], self.count, self.query.shape[2], self.key.shape[2]

    @cached_property
    def sizes(self) -> dict[str, Any]:
        """What kernels are compiled for."""
        dim, width = self.shape[2:]
        return {
            "DELTA": self.chunks.solved is not None,
            "DECAY": self.chunks.total is not None,
            "K": dim,
            "V": width,
            "PADDED": padded(dim),
            "CHUNK": CHUNK,
            "COLUMNS": COLUMNS,
        }


def in_chunks(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    strength: Tensor | None,
    log_decay: Tensor | None,
    rule: Rule,
) -> Text:
    """Make the parts of each chunk that need no state; strength and log_decay `[B, T, H]`."""
    import triton.language as tl

    from ahn.ops.chunk_scan.triton.chunk import prepare

    batch, length, heads, dim = query.shape
    count = -(-length // CHUNK)
    vector = query.new_empty(batch, heads, count * CHUNK, dtype=torch.float32)
    matrix = query.new_empty(batch, heads, count, CHUNK, CHUNK)
    chunks = Chunks(
        vector,
        torch.empty_like(vector),
        torch.empty_like(vector),
        None if log_decay is None else torch.empty_like(vector),
        matrix,
        torch.empty_like(matrix) if rule.delta else None,
    )
    text = Text(query, key, value, chunks)
    gates = [query[..., 0] if gate is None else gate for gate in (strength, log_decay)]
    half = tl.float16 if rule.normalize else tl.bfloat16
    prepare[(heads, count, batch)](
        query, key, *query.stride()[:3], *key.stride()[:3],
        gates[0], *gates[0].stride(), gates[1], *gates[1].stride(),
        *text.arguments[12:], rule.scale, *text.counts,
        NORMALIZE=rule.normalize, DELTA=rule.delta, DECAY=log_decay is not None,
        STRENGTH=strength is not None, K=dim, PADDED=padded(dim), CHUNK=CHUNK,
        DOUBLINGS=CHUNK.bit_length() - 1,
        DTYPE=tl.float32 if query.dtype == torch.float32 else half,
    )  # fmt: skip
    return text


def padded(size: int) -> int:
    """The next power of two that products of the kernels may be wide.

    Narrower ones than `NARROWEST` gave wrong numbers and illegal accesses on Hopper by Triton 3.6,
    in whose compiler such faults are known: Triton's issue 11366, flash-linear-attention's 984.
    """
    return max(NARROWEST, 1 << (size - 1).bit_length())
