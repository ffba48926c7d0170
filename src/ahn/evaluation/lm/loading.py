"""Models for lm-eval: a base and a memory that can look back as the method asks."""

from __future__ import annotations

import logging
from collections.abc import Iterable
from typing import Any

import torch
from transformers import PreTrainedModel

from ahn.checkpoint import from_pretrained, has_memory
from ahn.config import AHNConfig
from ahn.evaluation.controls import has_slots
from ahn.evaluation.lm.methods import method_named
from ahn.evaluation.streaming import new_cache
from ahn.hf.cache_argument import CACHE
from ahn.hf.vocabulary import check_token_ids
from ahn.modeling.attached import AHNModelMixin

LM_EVAL_DEFAULT = "cuda:0"  # what its command line says for a user who says nothing
log = logging.getLogger(__name__)


def load_model(
    base: str,
    memory: str | None,
    method: str,
    *,
    window: int | None = None,
    num_sinks: int | None = None,
    **hf_kwargs: Any,
) -> PreTrainedModel:
    """As `ahn.from_pretrained`; without a memory, `window` and `num_sinks` limit the base.

    Raises ValueError where the method needs a memory and there is none, or needs a window.
    """
    new_memory = None
    if memory is None and not has_memory(base, **hf_kwargs):
        _check_plain(method, window)
        new_memory = None if window is None else AHNConfig()  # the method leaves its cells out
    model = from_pretrained(
        base, memory, window=window, num_sinks=num_sinks, new_memory=new_memory, **hf_kwargs
    )
    check_method(model, method)
    return model


def check_method(model: PreTrainedModel, method: str) -> None:
    """Raise ValueError where a model without a memory, or without slots, cannot do this."""
    if not isinstance(model, AHNModelMixin):
        _check_plain(method, None)
    elif method_named(method).needs_slots and not has_slots(model):
        raise ValueError(f"memory: expected one with slots for method {method}, got one without")


def _check_plain(method: str, window: int | None) -> None:
    """As `check_method`, for a base without a memory that a window may limit."""
    if method_named(method).needs_memory:
        raise ValueError(f"memory: expected one for method {method}, got a model without")
    if method != "full" and window is None:
        raise ValueError(f"window: expected a number of tokens for method {method}, got none")


def pick_device(name: str | None) -> str:
    """The named device; by default the GPU, if there is one.

    Where there is none, lm-eval's default `cuda:0` becomes the CPU, with a warning. Raises
    ValueError where PyTorch cannot use the device.
    """
    has_gpu = torch.cuda.is_available()
    if name == LM_EVAL_DEFAULT and not has_gpu:
        log.warning("device: expected %s, got no GPU: the CPU is used", name)
        name = "cpu"
    name = name or ("cuda" if has_gpu else "cpu")
    try:
        torch.empty(0, device=name)
    except (RuntimeError, AssertionError) as error:
        raise ValueError(f"device: expected one that PyTorch can use, got {name!r}") from error
    return name


def check_tokens(tokens: Iterable[int], model: PreTrainedModel) -> None:
    """Raise ValueError where one of the tokens is none of the base's."""
    check_token_ids(max(tokens, default=0), model)


def at_least_one(name: str, value: Any) -> int:
    """An integer >= 1, also from text; raises ValueError with the option's name."""
    if isinstance(value, bool) or not str(value).isdigit() or int(value) < 1:
        raise ValueError(f"{name}: expected an integer >= 1, got {value!r}")
    return int(value)


def largest_batch(lm: Any, most: int) -> int:
    """As many rows, lowered from `most`, as read a chunk within the GPU's memory."""
    from accelerate.utils import find_executable_batch_size

    @find_executable_batch_size(starting_batch_size=most)
    @torch.no_grad()
    def fits(batch_size: int) -> int:
        ids = torch.zeros(batch_size, lm.prefill_chunk_size, dtype=torch.long, device=lm.device)
        with lm.method.context(lm.model):
            cache = new_cache(lm.model)
            for _ in range(2):  # the second chunk evicts as well
                lm.model(ids, logits_to_keep=1, **{CACHE: cache}, use_cache=True)
        return batch_size

    return fits()
