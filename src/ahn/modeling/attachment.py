"""Give a model a memory, take it away, switch it off: all that touches a model's modules."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from transformers import PreTrainedModel

from ahn.config import AHNConfig
from ahn.hf.attached_state import attached_state
from ahn.hf.install import install, uninstall
from ahn.hf.liger import drop_liger
from ahn.hf.support import check_supported
from ahn.layer.modes import FULL, POOLED, WINDOW
from ahn.modeling.attached import (
    AHNModelMixin,
    attached_classes,
    attached_config,
    take_over_attention,
)

BASE = "ahn_base"  # attribute of a model attached in place: its class and config before


def attach(model: PreTrainedModel, config: AHNConfig, *, kernels: str = "auto") -> PreTrainedModel:
    """Give a causal language model a memory, in place.

    The model becomes an instance of its family's attached class (`AHNQwen2ForCausalLM`, ...),
    with fresh cells that are silent until trained. Its own weights and config stay untouched.

    Args:
        model: a transformers decoder for causal language modelling.
        config: window, sinks and cell.
        kernels: `auto`, `torch`, `fla` or `triton`, the choice that governs all ops, see
            `ahn.ops.backends`; it belongs to the run and is not saved with the model.

    Returns:
        The same object.

    Raises:
        UnsupportedModel: the model cannot work with a memory; the message says why.
        ValueError: it has a memory already, or a setting is wrong.
    """
    if isinstance(model, AHNModelMixin):
        raise ValueError(f"attach: expected a model without a memory, got {type(model).__name__}")
    if not isinstance(model, PreTrainedModel):
        raise ValueError(f"attach: expected a transformers model, got {type(model).__name__}")
    check_supported(model, config)
    base, old = type(model), model.config
    new = attached_config(old, config, base)
    install(model, config, kernels)
    _replace_config(model, old, new)
    take_over_attention(new)
    model.__class__ = attached_classes(base)[1]
    setattr(model, BASE, (base, old))
    return model


def detach(model: PreTrainedModel) -> PreTrainedModel:
    """Take the memory away again, in place; the model is what it was before `attach`.

    Liger's kernels (`use_liger`) are taken away with it.

    Raises ValueError where nothing is attached.
    """
    attached_state(model)
    drop_liger(model)
    uninstall(model)
    attached = model.config
    base, old = model.__dict__.pop(BASE, None) or _base_of(model)
    _replace_config(model, attached, old)
    model.__class__ = base
    return model


@contextmanager
def disabled(model: PreTrainedModel) -> Iterator[PreTrainedModel]:
    """Within the context the model is its base, with full attention and a growing cache.

    It holds in this thread or task. A thread that is started within begins with the memory: enter
    the context there, as for `generate` with a streamer.
    """
    with attached_state(model).in_mode(FULL):
        yield model


@contextmanager
def memory_off(model: PreTrainedModel) -> Iterator[PreTrainedModel]:
    """Within the context the model has sinks and window alone, nothing is written or read.

    It holds in this thread or task, as `disabled` does.
    """
    with attached_state(model).in_mode(WINDOW):
        yield model


@contextmanager
def compressive(model: PreTrainedModel, pooling: str) -> Iterator[PreTrainedModel]:
    """Within the context the model is a Compressive Transformer (arXiv 1911.05507).

    The baseline of arXiv 2510.07318: what leaves the window is pooled 4 to 1, `pooling` `max` or
    `avg`, into a first in, first out pool of the bytes of the memory's state; see
    `ahn.ops.pooled_attention`. Raises ValueError for another pooling.
    """
    if pooling not in POOLED:
        raise ValueError(f"pooling: expected one of {', '.join(POOLED)}, got {pooling!r}")
    with attached_state(model).in_mode(POOLED[pooling]):
        yield model


def _replace_config(model: PreTrainedModel, old: Any, new: Any) -> None:
    """Every module that holds `old` holds `new`; other models may share `old`, so it stays."""
    for module in model.modules():
        if getattr(module, "config", None) is old:
            module.config = new


def _base_of(model: PreTrainedModel) -> tuple[type[PreTrainedModel], Any]:
    """Class and config below a model that was loaded with its memory."""
    base: Any = type(model).__bases__[1]  # as `attached_classes` made it
    values = model.config.to_dict()
    for name in ("ahn_config", "model_type", "architectures", "auto_map"):
        values.pop(name, None)
    config = base.config_class(**values)
    config._attn_implementation = model.config.ahn_backend
    return base, config
