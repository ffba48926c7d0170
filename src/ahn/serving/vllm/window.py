"""A layer's sinks and window in vLLM: pages of rows, and what a step needs to find them."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from vllm.model_executor.layers.attention_layer_base import AttentionLayerBase
from vllm.v1.attention.backend import AttentionBackend, AttentionMetadataBuilder

from ahn.serving.pages import Page, RowLayout
from ahn.serving.vllm.sink_window import SinkWindowSpec


@dataclass
class WindowMetadata:
    """Of one step; the names are those of vLLM's own."""

    query_start_loc: Tensor
    seq_lens: Tensor
    block_table: Tensor
    slot_mapping: Tensor
    num_actual_tokens: int


class WindowMetadataBuilder(AttentionMetadataBuilder[WindowMetadata]):
    """Takes what vLLM has on the device already."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)  # abstract in vLLM, though it is whole

    def build(
        self, common_prefix_len: int, common_attn_metadata: Any, fast_build: bool = False
    ) -> WindowMetadata:
        common = common_attn_metadata
        return WindowMetadata(
            common.query_start_loc,
            common.seq_lens,
            common.block_table_tensor,
            common.slot_mapping,
            common.num_actual_tokens,
        )


class WindowBackend(AttentionBackend):
    """Names the builder; the attention itself is the op of `ahn.serving.vllm.attention`."""

    @staticmethod
    def get_name() -> str:
        return "AHN_WINDOW"

    @staticmethod
    def get_builder_cls() -> type[WindowMetadataBuilder]:
        return WindowMetadataBuilder

    @staticmethod
    def get_impl_cls() -> Any:
        raise NotImplementedError("the layer is an op of its own")

    @classmethod
    def supports_sliding_window(cls) -> bool:
        return True


class WindowCache(nn.Module, AttentionLayerBase):
    """Owns one layer's pages, `[N, G, block, width]` once vLLM has bound them.

    Args:
        layout: of a token's row.
        page: its size fits a state too, so that both kinds share one pool of blocks.
        prefix: the name it has among vLLM's layers.
    """

    def __init__(
        self,
        layout: RowLayout,
        page: Page,
        window: int,
        num_sinks: int,
        dtype: torch.dtype,
        prefix: str,
    ) -> None:
        super().__init__()
        self.layout, self.page, self.dtype, self.prefix = layout, page, dtype, prefix
        self.window, self.num_sinks = window, num_sinks
        self.kv_cache = torch.empty(0)

    def get_attn_backend(self) -> type[AttentionBackend]:
        return WindowBackend

    def get_kv_cache_spec(self, vllm_config: Any) -> SinkWindowSpec:
        """One token more than the window: the one that leaves is read in the step it leaves in."""
        return SinkWindowSpec(
            block_size=self.page.block,
            num_kv_heads=self.layout.groups,
            head_size=self.layout.head_dim,
            head_size_v=self.layout.width - self.layout.head_dim,
            dtype=self.dtype,
            sliding_window=self.window + 1,
            num_sinks=self.num_sinks,
        )
