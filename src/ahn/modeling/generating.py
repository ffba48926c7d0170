"""What `generate` of an attached model does differently from its family's."""

from __future__ import annotations

from typing import Any

from ahn.hf.attached_state import attached_state
from ahn.hf.cache_argument import CACHE, cache_argument
from ahn.hf.hooks import PROMPT
from ahn.layer.cache import AHNCache
from ahn.runtime.generate_step import GenerateStep
from ahn.runtime.prefill_chunk import default_prefill_chunk_size

IRREVERSIBLE = "expected none, tokens compressed into the memory cannot be taken back"


class GeneratesWithMemory:
    """`generate` with a bounded cache: its prompts in chunks, its steps as CUDA graphs.

    In full attention all methods are the family's.
    """

    config: Any

    def generate(self, *args: Any, assistant_model: Any = None, **kwargs: Any) -> Any:
        """As the family's; the memory refuses assisted decoding and any other cache."""
        if assistant_model is not None and _is_bounded(self):
            raise ValueError(f"assistant_model: {IRREVERSIBLE}")
        name, cache = cache_argument(kwargs)
        if _is_bounded(self) and cache is not None and not isinstance(cache, AHNCache):
            raise ValueError(f"{name}: expected an AHNCache, got {type(cache).__name__}")
        return super().generate(  # type: ignore[misc]
            *args, assistant_model=assistant_model, **kwargs
        )

    def _prepare_cache_for_generation(
        self,
        generation_config: Any,
        model_kwargs: dict[str, Any],
        generation_mode: Any,
        batch_size: int,
        *args: Any,
        **kwargs: Any,
    ) -> Any:
        if _is_bounded(self):
            _refuse_options(generation_config)
            if model_kwargs.get(CACHE) is None and generation_config.use_cache is not False:
                generation_config.cache_implementation = None
                model_kwargs[CACHE] = AHNCache(self.config)
            _read_in_chunks(self, generation_config, model_kwargs, batch_size)
        return super()._prepare_cache_for_generation(  # type: ignore[misc]
            generation_config, model_kwargs, generation_mode, batch_size, *args, **kwargs
        )

    def _valid_auto_compile_criteria(
        self, model_kwargs: dict[str, Any], generation_config: Any
    ) -> bool:
        """Whether `generate` decodes by `get_compiled_call`."""
        if isinstance(model_kwargs.get(CACHE), AHNCache):
            return not generation_config.disable_compile
        return super()._valid_auto_compile_criteria(  # type: ignore[misc]
            model_kwargs, generation_config
        )

    def get_compiled_call(self, compile_config: Any) -> Any:
        """What `generate` calls instead of the model; a `compile_config` asks for compilation."""
        if _is_bounded(self):
            return GenerateStep(self, compile_config)  # type: ignore[arg-type]
        return super().get_compiled_call(compile_config)  # type: ignore[misc]

    @property
    def init_continuous_batching(self) -> Any:
        """Absent: `transformers serve` asks, and falls back to `generate`."""
        raise AttributeError("continuous batching does not know the bounded cache")


def _is_bounded(model: Any) -> bool:
    """Whether the model runs with a cache of bounded size now, not with full attention."""
    return attached_state(model).mode.is_bounded


def _read_in_chunks(model: Any, generation_config: Any, inputs: dict[str, Any], batch: int) -> None:
    """Have `generate` read a prompt longer than a chunk in chunks, unless a size was given.

    A prompt that continues a cache is read in one forward: before transformers 5.19 `generate`
    would read it in chunks from the beginning.
    """
    cache, mask = inputs.get(CACHE), inputs.get("attention_mask")
    is_new = cache is not None and not cache.get_seq_length()
    # Later versions of transformers 5 drop a mask of ones, and note its length.
    length = getattr(generation_config, "_mask_length", 0) if mask is None else mask.shape[1]
    if not is_new or not length or inputs.get("inputs_embeds") is not None:
        return
    inputs[PROMPT] = length
    copies = max(generation_config.num_beams or 1, generation_config.num_return_sequences or 1)
    chunk_size = default_prefill_chunk_size(model, batch * copies)
    if generation_config.prefill_chunk_size is None and length > chunk_size:
        generation_config.prefill_chunk_size = chunk_size


def _refuse_options(generation_config: Any) -> None:
    """Raise ValueError for what `generate` offers and a bounded memory cannot do."""
    kind = generation_config.cache_implementation
    if kind not in (None, "dynamic"):
        raise ValueError(f"cache_implementation: expected none (an AHNCache is made), got {kind!r}")
    for name in ("prompt_lookup_num_tokens", "is_assistant", "assistant_early_exit"):
        if getattr(generation_config, name, None):
            raise ValueError(f"{name}: {IRREVERSIBLE}")
