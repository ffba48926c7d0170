"""What one layer of a session holds for its counters: full shapes and dtypes by name."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from ahn.hf.fingerprint import Fingerprint
from ahn.layer.cache import AHNCache
from ahn.layer.modes import MODES, POOL, POOLED
from ahn.layer.other_layers import can_hold
from ahn.memory import StateSpec
from ahn.ops.pooled_attention import pool_slots
from ahn.shapes import AttentionSizes

MEMORY, FULL = "memory", "full"  # kinds of layers: one with a memory, one with full attention
COUNTERS = ("seen", "max_padding", "mode")
# Of transformers, in layers that are bounded by themselves.
OTHERS = ("DynamicSlidingWindowLayer", "LinearAttentionLayer", "DummyLayer")

Counters = dict[str, Any]  # of one layer: its kind, and its counters by name


@dataclass(frozen=True)
class LayerContent:
    """What a layer holds for these counters; see `check_layers`."""

    index: int
    counters: Counters
    batch: int
    dtype: torch.dtype  # of keys
    owner: Fingerprint
    sizes: AttentionSizes

    def expected(
        self, cache: AHNCache, seen: int, tensors: Mapping[str, Tensor]
    ) -> dict[str, StateSpec]:
        """Full shape and dtype of each tensor by its name in the file."""
        layer: Any = cache.layers[self.index]
        rows = seen
        if self.counters["kind"] == FULL:
            return self._pairs(rows)
        if self.counters["kind"] in OTHERS:
            return self._of_other_layer(layer, tensors)
        budget = layer.window + layer.num_sinks
        if (keys := tensors.get(f"{self.index}.keys")) is not None and keys.ndim == 4:
            rows = keys.shape[2]  # it grows as tokens come
        if not min(seen, budget) <= rows <= budget:
            raise ValueError(f"{rows} rows of keys for {seen} tokens and a budget of {budget}")
        named = self._pairs(rows)
        least = 0
        if (offset := f"{self.index}.rope_offset") in tensors:
            named[offset] = StateSpec((self.batch,), torch.int64)
        if self.counters["max_padding"]:
            named[f"{self.index}.padding"] = StateSpec((self.batch,), torch.int64)
            least = _least_padding(tensors.get(f"{self.index}.padding"), self.counters)
        return named | self._of_mode(rows, tensors, is_written=seen - least > budget)

    def _pairs(self, rows: int) -> dict[str, StateSpec]:
        shape = (self.batch, self._groups, rows, self._head_dim)
        return {f"{self.index}.{x}": StateSpec(shape, self.dtype) for x in ("keys", "values")}

    def _of_other_layer(self, layer: Any, tensors: Mapping[str, Tensor]) -> dict[str, StateSpec]:
        """A layer that is bounded by itself: what its kind can hold, of so many sequences."""
        named = {}
        for name, tensor in tensors.items():
            index, _, rest = name.partition(".")
            if index == str(self.index) and can_hold(layer, rest):
                named[name] = StateSpec((self.batch, *tensor.shape[1:]), tensor.dtype)
        return named

    def _of_mode(
        self, rows: int, tensors: Mapping[str, Tensor], is_written: bool
    ) -> dict[str, StateSpec]:
        """What the mode holds beside keys.

        States are there once a token has been written; before, they are absent or zero.
        """
        mode, declared = MODES[self.counters["mode"]], self.owner.declared[self.index]
        named, states = {}, {}
        if mode.uses_memory:
            states = {k: replace(x, shape=(self.batch, *x.shape))
                      for k, x in declared["states"].items()}  # fmt: skip
            for name, spec in declared["write_inputs"].items():
                heads, width = spec.shape
                shape = (self.batch, heads, rows, width)
                named[f"{self.index}.write_inputs.{name}"] = StateSpec(shape, spec.dtype)
        elif mode in POOLED.values():
            sizes = (self._groups, self._pool_slots(), 2 * self._head_dim)
            states = {POOL: StateSpec((self.batch, *sizes), self.dtype)}
        states = {f"{self.index}.states.{name}": spec for name, spec in states.items()}
        if is_written or not states.keys() <= tensors.keys():
            return named | (states if is_written else {})
        for name in states:
            if tensors[name].any():
                raise ValueError(f"{name}: numbers before any token has been written")
        return named | states

    @property
    def _groups(self) -> int:
        return self.sizes.groups

    @property
    def _head_dim(self) -> int:
        return self.sizes.head_dim

    def _pool_slots(self) -> int:
        heads = (self.sizes.heads, self._groups, self._groups)
        parts = (
            torch.empty(1, x, 1, self._head_dim, dtype=self.dtype, device="meta") for x in heads
        )
        return pool_slots(*parts)


def _least_padding(padding: Tensor | None, counters: Counters) -> int:
    """The least padding of a row; ValueError where the largest is not the counter's."""
    if padding is None or padding.dtype != torch.int64 or not padding.numel():
        return 0  # named as missing, or as of another kind
    least, most = int(padding.min()), int(padding.max())
    if least < 0 or most != counters["max_padding"]:
        raise ValueError(f"padding of {least} to {most} instead of {counters['max_padding']}")
    return least
