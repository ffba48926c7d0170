"""In the place of vLLM's attention: one op for each layer, which no graph looks into."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from vllm.forward_context import get_forward_context
from vllm.utils.torch_utils import direct_register_custom_op

from ahn.serving.reference import PagedLayer, Step, paged_attention
from ahn.serving.vllm.window import WindowCache


class AHNAttention(nn.Module):
    """Sinks, window and memory of one layer; it is called as vLLM's `Attention`.

    The op sees `hidden`, from which gates are made, too. So all of a cell lies within the op, and
    compilers never meet its Python.

    Args:
        window, memory: the layer's two caches.
        scale: factor on the attention's scores.
    """

    def __init__(self, window: WindowCache, memory: Any, scale: float) -> None:
        super().__init__()
        self.prefixes, self.scale = (window.prefix, memory.prefix), scale
        self.query_shape = (-1, memory.num_heads, memory.head_dim)
        self.key_shape = (-1, window.layout.groups, window.layout.head_dim)
        self.hidden: Tensor | None = None  # of the forward that is running

    def forward(self, query: Tensor, key: Tensor, value: Tensor) -> Tensor:
        query = query.reshape(self.query_shape)
        key, value = key.reshape(self.key_shape), value.reshape(self.key_shape)
        out = torch.empty_like(query)
        torch.ops.vllm.ahn_attention(
            query, key, value, self.hidden, out, *self.prefixes, self.scale
        )
        return out.flatten(1)


class GivesHidden:
    """Mixed into a family's attention: its `attn` also sees what the projections saw.

    vLLM passes a layer's attention query, key and value alone.
    """

    def forward(self, positions: Tensor, hidden_states: Tensor, *args: Any, **kwargs: Any) -> Any:
        attention: Any = self
        attention.attn.hidden = hidden_states
        out = super().forward(positions, hidden_states, *args, **kwargs)  # type: ignore[misc]
        attention.attn.hidden = None
        return out


def ahn_attention(
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    hidden: torch.Tensor,
    out: torch.Tensor,
    window_name: str,
    memory_name: str,
    scale: float,
) -> None:
    """The op: what `paged_attention` gives for the running step, put into `out`."""
    context = get_forward_context()
    if context.attn_metadata is None:  # vLLM measures its memory
        out.zero_()
        return
    window, cell = (context.no_compile_layers[name] for name in (window_name, memory_name))
    metadata, states = (context.attn_metadata[name] for name in (window_name, memory_name))
    number = metadata.num_actual_tokens
    step = Step(
        starts=metadata.query_start_loc,
        lengths=metadata.seq_lens,
        tables=metadata.block_table,
        slots=metadata.slot_mapping[:number],
        states=states.state_indices_tensor,
    )
    layer = PagedLayer(
        cell=cell,
        layout=window.layout,
        pages=window.kv_cache,
        states=cell.kv_cache[0],
        window=window.window,
        num_sinks=window.num_sinks,
        scale=scale,
    )
    tokens = (x[:number] for x in (query, key, value, hidden))
    out[:number] = paged_attention(layer, step, *tokens)
    out[number:] = 0


def _no_kernel(
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    hidden: torch.Tensor,
    out: torch.Tensor,
    window_name: str,
    memory_name: str,
    scale: float,
) -> None:
    """What compilers run in the op's place: it gives nothing back."""


direct_register_custom_op(
    "ahn_attention", ahn_attention, mutates_args=["out"], fake_impl=_no_kernel
)
