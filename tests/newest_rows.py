"""A memory that keeps exact rows: the newest M tokens that left the window, as a test double.

With a window of W it is a window of W + M, so every law has an exact answer.
"""

from __future__ import annotations

import torch

from ahn.memory import Memory, MemoryOutput, StateSpec, register
from ahn.ops.window_attention import ExactRows

ROWS = 10


@register
class NewestRows(Memory):
    """A token at position p lives in row p % ROWS; position + 1 is stored, so 0 is empty."""

    @classmethod
    def state_specs(cls, num_heads, num_key_value_heads, head_dim):
        pair = StateSpec((num_key_value_heads, ROWS, head_dim), dtype=None)
        return {"row_keys": pair, "row_values": pair, "row_ends": StateSpec((ROWS,), torch.int64)}

    def forward(self, hidden, query, evicted, states):
        batch, number = len(hidden), evicted.key.shape[2]
        if not number:
            return MemoryOutput(None, states, {})
        states = states or self.init_states(batch, hidden.device, evicted.key.dtype)
        position = evicted.position.expand(batch, -1)
        written = torch.ones_like(position, dtype=torch.bool)
        if evicted.write_mask is not None:
            written = evicted.write_mask.expand(batch, -1)
        ends = torch.cat([states["row_ends"], torch.where(written, position + 1, 0)], 1)
        keys = torch.cat([states["row_keys"], evicted.key], 2)
        values = torch.cat([states["row_values"], evicted.value], 2)
        first = ends - 1 - position[:, :1]  # the reader that evicts it; earlier ones see a later
        end = torch.where(ends > 0, first + ROWS, 0)
        rows = ExactRows(keys, values, first[:, None], end[:, None], number)
        return MemoryOutput(None, self._newest(keys, values, ends), {}, rows)

    def _newest(self, keys, values, ends):
        """The last token of each row."""
        row = torch.where(ends > 0, (ends - 1) % ROWS, -1)
        same = row[:, None] == torch.arange(ROWS)[None, :, None]  # [B, ROWS, N]
        newest = torch.where(same, ends[:, None], -1).argmax(-1)
        found = same.any(-1)
        index = newest[:, None, :, None].expand(-1, keys.shape[1], -1, keys.shape[3])
        return {
            "row_keys": keys.gather(2, index),
            "row_values": values.gather(2, index),
            "row_ends": torch.where(found, ends.gather(1, newest), 0),
        }
