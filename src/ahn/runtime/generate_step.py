"""The forwards of `generate`, each by what runs it fastest."""

from __future__ import annotations

from typing import Any

from transformers import PreTrainedModel
from transformers.modeling_outputs import CausalLMOutputWithPast

from ahn.hf.cache_argument import CACHE
from ahn.hf.hooks import PROMPT
from ahn.hf.inputs import has_images
from ahn.runtime.decode_step import DecodeStep
from ahn.runtime.fill_cache import fill_cache

CACHE_INPUTS = ("input_ids", "attention_mask", "position_ids", CACHE)


class GenerateStep:
    """Called by `generate` for every forward: a `DecodeStep` runs those of one token a row.

    All chunks of a prompt but the last are read for the cache alone.
    """

    def __init__(self, model: PreTrainedModel, compile_config: Any = None) -> None:
        self.model, self.how = model, "auto" if compile_config is None else "compile"
        self.step: DecodeStep | None = None

    def __call__(self, **inputs: Any) -> Any:
        cache, prompt_length = inputs[CACHE], inputs.pop(PROMPT, 0)
        if _is_early_chunk(inputs, prompt_length):
            fill_cache(
                self.model, **{name: inputs[name] for name in CACHE_INPUTS if name in inputs}
            )
            return CausalLMOutputWithPast(**{CACHE: cache})
        if not _is_decoding(inputs):
            return self.model(**inputs)
        if self.step is None:
            self.step = DecodeStep(self.model, cache, self.how)
        if not self.step.use_graph:
            return self.model(**inputs)
        logits = self.step(inputs["input_ids"][:, 0])
        return CausalLMOutputWithPast(logits=logits[:, None], **{CACHE: cache})


def _is_decoding(inputs: dict[str, Any]) -> bool:
    """Whether a forward reads one new token a row after a prompt, for its logits alone."""
    ids, cache = inputs.get("input_ids"), inputs[CACHE]
    is_one = ids is not None and ids.shape[1] == 1
    return is_one and cache.get_seq_length() > 0 and not _wants_more(inputs)


def _is_early_chunk(inputs: dict[str, Any], prompt_length: int) -> bool:
    """Whether a forward reads a chunk of the prompt that is not its last."""
    ids, cache = inputs.get("input_ids"), inputs[CACHE]
    is_early = ids is not None and cache.get_seq_length() + ids.shape[1] < prompt_length
    return is_early and not _wants_more(inputs) and not has_images(inputs)


def _wants_more(inputs: dict[str, Any]) -> bool:
    """Whether attention weights or hidden states are asked for as well."""
    return any(inputs.get(name) for name in ("output_attentions", "output_hidden_states"))
