"""A model for lm-eval: a base and a memory, checked against the method it is to look back with."""

from __future__ import annotations

import logging
from typing import Any

import torch
from transformers import PreTrainedModel

from ahn.checkpoint import from_pretrained
from ahn.config import AHNConfig
from ahn.evaluation.lm.methods import method_named
from ahn.modeling import attach
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
    if memory is not None:
        return from_pretrained(base, memory, window=window, num_sinks=num_sinks, **hf_kwargs)
    model = from_pretrained(base, **hf_kwargs)
    if isinstance(model, AHNModelMixin):  # merged: it has its own
        limits = {"window": window, "num_sinks": num_sinks}
        if any(limit is not None for limit in limits.values()):
            del model
            model = from_pretrained(base, **limits, **hf_kwargs)
        return model
    check_method(model, method, window)
    if window is not None:
        sinks = AHNConfig.num_sinks if num_sinks is None else num_sinks
        attach(model, AHNConfig(window=window, num_sinks=sinks))
    return model


def check_method(model: PreTrainedModel, method: str, window: int | None = None) -> None:
    """Raise ValueError where a model without a memory cannot look back this way."""
    if isinstance(model, AHNModelMixin):
        return
    if method_named(method).needs_memory:
        raise ValueError(f"memory: expected one for method {method}, got a model without")
    if method != "full" and window is None:
        raise ValueError(f"window: expected a number of tokens for method {method}, got none")


def pick_device(name: str | None) -> str:
    """The named device; by default the GPU, if there is one.

    lm-eval's own default gives way to the CPU, with a warning. Raises ValueError where PyTorch
    cannot use another.
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


def at_least_one(name: str, value: Any) -> int:
    """An integer >= 1, also as text; ValueError names what it is not."""
    if isinstance(value, bool) or not str(value).isdigit() or int(value) < 1:
        raise ValueError(f"{name}: expected an integer >= 1, got {value!r}")
    return int(value)


def float32(dtype: Any) -> str:
    """The one dtype of the embedded model; ValueError where another is asked for."""
    if dtype not in (None, "auto", "float32"):
        raise ValueError(f"dtype: expected float32 for the embedded model, got {dtype!r}")
    return "float32"
