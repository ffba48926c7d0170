"""What `generate` of an attached model does differently from its family's."""

from __future__ import annotations

from typing import Any

from torch import Tensor
from transformers import GenerationMixin
from transformers.generation import utils

from ahn.hf.attached_state import attached_state
from ahn.hf.cache_argument import CACHE, cache_argument, under_known_name
from ahn.hf.hooks import PROMPT
from ahn.hf.inputs import ENCODED, check_rows_end_in_tokens, has_images
from ahn.layer.cache import AHNCache
from ahn.modeling.prompt_gaps import with_prompt, without_gaps
from ahn.runtime.generate_step import GenerateStep
from ahn.runtime.prefill_chunk import default_prefill_chunk_size

OF_ALL_TOKENS = ("output_hidden_states", "output_attentions")
GROWING = ("dynamic", "dynamic_full")  # caches that `generate` makes unless told otherwise
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
        _check_not_empty(args, kwargs)
        name, cache = cache_argument(kwargs)
        if _is_bounded(self) and cache is not None and not isinstance(cache, AHNCache):
            raise ValueError(f"{name}: expected an AHNCache, got {type(cache).__name__}")
        prompt = None
        if _is_bounded(self) and cache is None:
            prompt, args, kwargs = without_gaps(self, args, kwargs)
        output = super().generate(  # type: ignore[misc]
            *args, assistant_model=assistant_model, **under_known_name(kwargs)
        )
        return output if prompt is None else with_prompt(output, prompt)

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
            if model_kwargs.get(CACHE) is not None:
                length = _prompt_length(generation_config, model_kwargs)
                _check_prompt(model_kwargs, length)
                _read_in_chunks(self, generation_config, model_kwargs, batch_size, length)
        return super()._prepare_cache_for_generation(  # type: ignore[misc]
            generation_config, model_kwargs, generation_mode, batch_size, *args, **kwargs
        )

    def prepare_inputs_for_generation(self, *args: Any, **kwargs: Any) -> Any:
        """As the family's, which may not drop the cache: frequencies stand still here."""
        inputs = super().prepare_inputs_for_generation(*args, **kwargs)  # type: ignore[misc]
        if _is_bounded(self) and kwargs.get(CACHE) is not None and inputs.get(CACHE) is None:
            return GenerationMixin.prepare_inputs_for_generation(self, *args, **kwargs)  # type: ignore[arg-type]
        return inputs

    def _prepare_position_ids_for_generation(
        self, inputs_tensor: Any, model_kwargs: dict[str, Any]
    ) -> Any:
        """Those of text that follows an image go on from the cache's, not from the last image's."""
        cache, types = model_kwargs.get(CACHE), model_kwargs.get("mm_token_type_ids")
        first = cache.memory_layers[:1] if isinstance(cache, AHNCache) else []
        offset = first[0].rope_offset if first and first[0].seen else None
        if offset is None or (types is not None and types[:, first[0].seen :].any()):
            return super()._prepare_position_ids_for_generation(  # type: ignore[misc]
                inputs_tensor, model_kwargs
            )
        text = GenerationMixin._prepare_position_ids_for_generation
        return text(self, inputs_tensor, model_kwargs) + offset[:, None]  # type: ignore[arg-type]

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


def _check_not_empty(args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
    """Raise ValueError for a prompt without a token, over which some versions fall unnamed."""
    ids = args[0] if args else kwargs.get("inputs", kwargs.get("input_ids"))
    if isinstance(ids, Tensor) and not ids.numel() and kwargs.get("inputs_embeds") is None:
        raise ValueError("input: expected at least one token, got an empty prompt")


def _prompt_length(generation_config: Any, inputs: dict[str, Any]) -> int:
    """Tokens of the prompt, those in the cache too; 0 where it cannot be told.

    Later versions of transformers 5 drop a mask of ones, and note its length.
    """
    mask = inputs.get("attention_mask")
    return getattr(generation_config, "_mask_length", 0) if mask is None else mask.shape[1]


def _check_prompt(inputs: dict[str, Any], length: int) -> None:
    """Raise ValueError where no token of the prompt is left to read, or a row ends in padding.

    The logits of the last token that a cache has read are not kept, and it cannot be taken back.
    """
    seen, mask = inputs[CACHE].get_seq_length(), inputs.get("attention_mask")
    if length and seen >= length:
        raise ValueError(
            f"{CACHE}: expected one that has read less than the prompt of {length} tokens, got one "
            f"that has read {seen}"
        )
    if mask is not None and mask.ndim == 2:
        check_rows_end_in_tokens(mask)


def _read_in_chunks(
    model: Any, generation_config: Any, inputs: dict[str, Any], batch: int, length: int
) -> None:
    """Have `generate` read a prompt longer than a chunk in chunks, unless a size was given.

    A prompt that continues a cache is read in one forward: before transformers 5.19 `generate`
    would read it in chunks from the beginning. One whose hidden states or attention weights are
    asked for is read in one forward too: of chunks, `generate` gives the last one's alone.
    """
    wanted = [name for name in OF_ALL_TOKENS if getattr(generation_config, name, None)]
    if wanted and generation_config.prefill_chunk_size is not None:
        raise ValueError(
            f"prefill_chunk_size: expected none with {wanted[0]}, which would be the last chunk's "
            f"alone, got {generation_config.prefill_chunk_size}"
        )
    is_new = not inputs[CACHE].get_seq_length()
    if not is_new or not length or wanted or inputs.get("inputs_embeds") is not None:
        return
    inputs[PROMPT] = length
    copies = max(generation_config.num_beams or 1, generation_config.num_return_sequences or 1)
    chunk_size = default_prefill_chunk_size(model, batch * copies)
    if has_images(inputs):
        if not _splits_images(inputs):
            return
        if hasattr(model, "create_masks_for_generate"):  # an image is read within the budget
            chunk_size = min(chunk_size, attached_state(model).config.budget)
    if generation_config.prefill_chunk_size is None and length > chunk_size:
        generation_config.prefill_chunk_size = chunk_size


def _splits_images(inputs: dict[str, Any]) -> bool:
    """Whether `generate` gives each chunk of a prompt its own part of the images."""
    raw = {name: value for name, value in inputs.items() if name != ENCODED}
    return hasattr(utils, "_slice_mm_encoder_output") and not has_images(raw)


def _refuse_options(generation_config: Any) -> None:
    """Raise ValueError for what `generate` offers and a bounded memory cannot do."""
    kind = generation_config.cache_implementation
    if kind not in (None, *GROWING):
        raise ValueError(f"cache_implementation: expected none (an AHNCache is made), got {kind!r}")
    for name in ("prompt_lookup_num_tokens", "is_assistant", "assistant_early_exit"):
        if getattr(generation_config, name, None):
            raise ValueError(f"{name}: {IRREVERSIBLE}")
