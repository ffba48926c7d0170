"""The cache of sinks and window as vLLM's scheduler sees it: which blocks are kept and found."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from vllm.utils.math_utils import cdiv
from vllm.v1.core.kv_cache_utils import KVCacheBlock, resolve_block_hashes
from vllm.v1.core.single_type_kv_cache_manager import SlidingWindowManager
from vllm.v1.kv_cache_interface import SlidingWindowSpec
from vllm.v1.kv_cache_spec_registry import register_kv_cache_spec


class SinkWindowManager(SlidingWindowManager):
    """A sliding window whose first blocks, those of the sinks, stay.

    A hit in the prefix cache needs them beside the window's last blocks.
    """

    def __init__(self, kv_cache_spec: SinkWindowSpec, **options: Any) -> None:
        super().__init__(kv_cache_spec, **options)
        needed, free = self.max_admission_blocks_per_request, self.block_pool.num_gpu_blocks - 1
        if needed is not None and free < needed + 1:  # and its state
            raise ValueError(
                f"cache: expected at least {needed + 1} blocks of {self.block_size} tokens for one "
                f"request, got {free}"
            )

    def remove_skipped_blocks(
        self,
        request_id: str,
        processed_computed_tokens: int,
        num_prompt_tokens: int | None = None,
    ) -> None:
        """Free what lies between sinks and window."""
        skipped = self.get_num_skipped_tokens(processed_computed_tokens) // self.block_size
        last = min(skipped, len(self.req_to_blocks[request_id]))
        self._remove_blocks_in_range(request_id, _sink_blocks(self.kv_cache_spec), last)

    @classmethod
    def find_longest_cache_hit(
        cls,
        block_hashes: Any,
        max_length: int,
        kv_cache_group_ids: list[int],
        block_pool: Any,
        kv_cache_spec: Any,
        drop_eagle_block: bool,
        alignment_tokens: int,
        **options: Any,
    ) -> tuple[tuple[list[KVCacheBlock], ...], int]:
        """The window's blocks and the sinks'; nothing where one of the sinks' is gone."""
        found, hit = super().find_longest_cache_hit(
            block_hashes, max_length, kv_cache_group_ids, block_pool, kv_cache_spec,
            drop_eagle_block, alignment_tokens, **options,
        )  # fmt: skip
        hashes = resolve_block_hashes(
            block_hashes,
            block_pool.hash_block_size,
            kv_cache_spec.block_size,
            supports_fine_grained_hash_lookup=cls.supports_fine_grained_hash_lookup,
            alignment_tokens=alignment_tokens,
        )
        for index in range(min(_sink_blocks(kv_cache_spec), len(found[0]))):
            cached = block_pool.get_cached_block(hashes[index], kv_cache_group_ids)
            if cached is None:
                return tuple([] for _ in kv_cache_group_ids), 0
            for blocks, block in zip(found, cached):
                blocks[index] = block
        return found, hit

    @classmethod
    def reachable_block_mask(
        cls,
        start_block: int,
        end_block: int,
        alignment_tokens: int | None,
        kv_cache_spec: Any,
        *arguments: Any,
        **options: Any,
    ) -> list[bool] | None:
        """Blocks worth keeping in the prefix cache: the sinks' always."""
        mask = super().reachable_block_mask(
            start_block, end_block, alignment_tokens, kv_cache_spec, *arguments, **options
        )
        if mask is not None:
            for index in range(start_block, min(end_block, _sink_blocks(kv_cache_spec))):
                mask[index - start_block] = True
        return mask

    def get_num_blocks_to_allocate(
        self,
        request_id: str,
        num_tokens: int,
        new_computed_blocks: Sequence[KVCacheBlock],
        total_computed_tokens: int,
        *arguments: Any,
        **options: Any,
    ) -> int:
        """The window's, and the sinks' of a hit that no other request holds: they leave the free
        blocks as they are taken up, though they are no longer in the window."""
        needed = super().get_num_blocks_to_allocate(
            request_id, num_tokens, new_computed_blocks, total_computed_tokens,
            *arguments, **options,
        )  # fmt: skip
        skipped = self.get_num_skipped_tokens(total_computed_tokens) // self.block_size
        sinks = new_computed_blocks[: min(skipped, _sink_blocks(self.kv_cache_spec))]
        return needed + self._get_num_evictable_blocks(sinks)

    def add_local_computed_blocks(
        self,
        request_id: str,
        new_computed_blocks: Sequence[KVCacheBlock],
        *arguments: Any,
        **options: Any,
    ) -> None:
        """Take up the blocks of a hit; those of the sinks are not skipped."""
        sinks = new_computed_blocks[: _sink_blocks(self.kv_cache_spec)]
        super().add_local_computed_blocks(request_id, new_computed_blocks, *arguments, **options)
        blocks = self.req_to_blocks[request_id]
        for index, block in enumerate(sinks):
            if blocks[index].is_null and not block.is_null:
                self.block_pool.touch([block])
                blocks[index] = block


@register_kv_cache_spec(manager_class=SinkWindowManager, uniform_type_base_spec=SlidingWindowSpec)
@dataclass(frozen=True, kw_only=True)
class SinkWindowSpec(SlidingWindowSpec):
    """The first `num_sinks` tokens of a request and its last `sliding_window`."""

    num_sinks: int = 0

    def max_admission_blocks_per_request(
        self, max_in_flight_tokens: int, max_model_len: int
    ) -> int:
        """The window's blocks, and the sinks'."""
        window = super().max_admission_blocks_per_request(max_in_flight_tokens, max_model_len)
        return window + _sink_blocks(self)


def _sink_blocks(spec: Any) -> int:
    """Blocks that hold sinks."""
    return cdiv(spec.num_sinks, spec.block_size)
