"""Phase 1 of the forward: the factors of each chunk that do not depend on the state."""

from __future__ import annotations

from dataclasses import dataclass, fields
from functools import cached_property
from typing import Any

import torch
from torch import Tensor

CHUNK_SIZE = 64
BLOCK_V = 64  # columns of a state that one program works on
MIN_BLOCK = 64  # see `padded`


@dataclass(frozen=True)
class Rule:
    """Which recurrence is computed.

    Attributes:
        delta: True for the delta rule, where a token writes the difference between its value and
            what the state returns for its key; False for a plain sum of outer products (SSD).
        normalize: divide queries and keys by their L2 norms first.
        scale: factor on the queries.
    """

    delta: bool
    normalize: bool
    scale: float = 1.0


@dataclass(frozen=True)
class ChunkFactors:
    """Factors of N chunks of `CHUNK_SIZE` tokens, computed from queries, keys and gates.

    Attributes:
        query_scale, key_scale: `[B, H, N CHUNK_SIZE]` float32, factors on queries and keys.
        beta: `[B, H, N CHUNK_SIZE]` float32, write strength; 0 behind the last token.
        g_cumsum: `[B, H, N CHUNK_SIZE]` float32, log2 of the decay from the chunk's start to each
            token; None without decay.
        A_qk: `[B, H, N, CHUNK_SIZE, CHUNK_SIZE]`, maps the errors of a chunk's tokens to what its
            queries read of them: tril(q k^T * decay), for the delta rule times A_inv.
        A_inv: `[B, H, N, CHUNK_SIZE, CHUNK_SIZE]`, maps errors to writes: (I + A)^-1 with
            A = tril(beta k k^T * decay, -1); None without the delta rule, where both are equal.
    """

    query_scale: Tensor
    key_scale: Tensor
    beta: Tensor
    g_cumsum: Tensor | None
    A_qk: Tensor
    A_inv: Tensor | None

    @property
    def tensors(self) -> list[Tensor | None]:
        return [getattr(self, field.name) for field in fields(self)]


@dataclass(frozen=True)
class ChunkedInputs:
    """query `[B, T, H, K]`, key `[B, T, G, K]`, value `[B, T, G, V]` and their chunks' factors."""

    query: Tensor
    key: Tensor
    value: Tensor
    factors: ChunkFactors

    @property
    def num_chunks(self) -> int:
        return self.factors.A_qk.shape[2]

    @cached_property
    def state_shape(self) -> tuple[int, int, int, int]:
        """B, H, K, V."""
        batch, _, heads, dim = self.query.shape
        return batch, heads, dim, self.value.shape[-1]

    @cached_property
    def value_blocks(self) -> int:
        """Number of programs that share the state of one head."""
        return -(-self.value.shape[-1] // BLOCK_V)

    @property
    def num_warps(self) -> int:
        """Of a program that holds `BLOCK_V` columns of a state."""
        return 4 if self.state_shape[2] <= 128 else 8

    @cached_property
    def arguments(self) -> list[Any]:
        """The first arguments of every kernel; a tensor that is not read stands in for None."""
        inputs = (self.query, self.key, self.value)
        strides = [stride for x in inputs for stride in x.stride()[:3]]
        factors = [self.factors.key_scale if x is None else x for x in self.factors.tensors]
        return [*inputs, *strides, *factors]

    @cached_property
    def counts(self) -> tuple[int, int, int, int]:
        """T, number of chunks, H, G."""
        return self.query.shape[1], self.num_chunks, self.query.shape[2], self.key.shape[2]

    @cached_property
    def constants(self) -> dict[str, Any]:
        """The compile-time arguments of the kernels."""
        dim, width = self.state_shape[2:]
        return {
            "DELTA": self.factors.A_inv is not None,
            "DECAY": self.factors.g_cumsum is not None,
            "K": dim,
            "V": width,
            "BK": padded(dim),
            "BT": CHUNK_SIZE,
            "BV": BLOCK_V,
        }


def prepare_chunks(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    beta: Tensor | None,
    log_decay: Tensor | None,
    rule: Rule,
) -> ChunkedInputs:
    """Compute the factors of all chunks; beta and log_decay are `[B, T, H]`."""
    import triton.language as tl

    from ahn.ops.chunk_scan.triton.prepare import prepare_kernel

    batch, length, heads, dim = query.shape
    num_chunks = -(-length // CHUNK_SIZE)
    vector = query.new_empty(batch, heads, num_chunks * CHUNK_SIZE, dtype=torch.float32)
    matrix = query.new_empty(batch, heads, num_chunks, CHUNK_SIZE, CHUNK_SIZE)
    factors = ChunkFactors(
        vector,
        torch.empty_like(vector),
        torch.empty_like(vector),
        None if log_decay is None else torch.empty_like(vector),
        matrix,
        torch.empty_like(matrix) if rule.delta else None,
    )
    chunked = ChunkedInputs(query, key, value, factors)
    gates = [query[..., 0] if gate is None else gate for gate in (beta, log_decay)]
    half = tl.float16 if rule.normalize else tl.bfloat16
    prepare_kernel[(heads, num_chunks, batch)](
        query, key, *query.stride()[:3], *key.stride()[:3],
        gates[0], *gates[0].stride(), gates[1], *gates[1].stride(),
        *chunked.arguments[12:], rule.scale, *chunked.counts,
        NORMALIZE=rule.normalize, DELTA=rule.delta, DECAY=log_decay is not None,
        HAS_BETA=beta is not None, K=dim, BK=padded(dim), BT=CHUNK_SIZE,
        DOUBLINGS=CHUNK_SIZE.bit_length() - 1,
        DTYPE=tl.float32 if query.dtype == torch.float32 else half,
    )  # fmt: skip
    return chunked


def padded(size: int) -> int:
    """The next power of two, at least `MIN_BLOCK`: the width of a matrix product in the kernels.

    Narrower products gave wrong numbers and illegal accesses on Hopper with Triton 3.6. Such faults
    of its compiler are known: Triton's issue 11366, flash-linear-attention's 984.
    """
    return max(MIN_BLOCK, 1 << (size - 1).bit_length())
