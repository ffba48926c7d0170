"""Give a model a memory, take it away, switch it off: all that touches a model's modules."""

from __future__ import annotations

import copy
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

from transformers import PreTrainedConfig, PreTrainedModel

from ahn.config import AHNConfig
from ahn.hf.attached_state import attached_state
from ahn.hf.configs import Pairs, copied_configs, replace_configs
from ahn.hf.frequencies import pin_frequencies
from ahn.hf.install import install, uninstall
from ahn.hf.liger import drop_liger
from ahn.hf.support import check_supported
from ahn.layer.modes import FULL, POOLED, WINDOW
from ahn.modeling.attached import (
    AHNModelMixin,
    attached_classes,
    take_over_attention,
    to_attached,
    to_base,
)

# Attribute of a model attached in place: class before, what its configs become, the attached values
# then.
BASE = "ahn_base"
# Values of an attached config that are none of its base's, or that saving sets.
OWN_VALUES = ("ahn_config", "model_type", "architectures", "auto_map", "dtype", "torch_dtype")


def attach(model: PreTrainedModel, config: AHNConfig, *, kernels: str = "auto") -> PreTrainedModel:
    """Give a causal language model a memory, in place.

    The model becomes an instance of its family's attached class (`AHNQwen2ForCausalLM`, ...),
    with fresh cells that are silent until trained. Its own weights and config stay untouched.
    Rotary frequencies that move with the text's length stand still, see `ahn.hf.frequencies`.

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
    base, configs = type(model), copied_configs(model)
    to_attached(configs[0][1], config, base)
    install(model, config, kernels)
    replace_configs(model, configs)
    take_over_attention(model)
    model.__class__ = attached_classes(base)[1]
    pin_frequencies(model.get_decoder(), config.budget)
    pairs = [(new, old) for old, new in configs]
    setattr(model, BASE, (base, pairs, model.config.to_dict()))
    return model


def detach(model: PreTrainedModel) -> PreTrainedModel:
    """Take the memory away again, in place; the model is what it was before `attach`.

    What its config was given meanwhile stays, such as the size of a vocabulary.

    Liger's kernels (`use_liger`) are taken away with it.

    Raises ValueError where nothing is attached.
    """
    attached_state(model)
    drop_liger(model)
    uninstall(model)
    base, configs = _base_of(model)
    model.__dict__.pop(BASE, None)
    replace_configs(model, configs)
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


def _base_of(model: PreTrainedModel) -> tuple[type[PreTrainedModel], Pairs]:
    """Class and configs below an attached model."""
    if BASE in model.__dict__:
        base_class, configs, before = model.__dict__[BASE]
        return base_class, _with_changes(configs, before, model.config.to_dict())
    base: Any = type(model).__bases__[1]  # loaded with its memory: as `attached_classes` made it
    configs = copied_configs(model)
    for attached, config in configs:
        to_base(config, base, is_model=attached is model.config)
    return base, configs


def _with_changes(configs: Pairs, before: Mapping[str, Any], after: Mapping[str, Any]) -> Pairs:
    """The configs, or copies with the values of the model's that differ in two dictionaries."""
    if not _changed(before, after):
        return configs  # others may share them
    copies = copy.deepcopy([config for _, config in configs])
    _change(copies[0], before, after)
    return [(attached, config) for (attached, _), config in zip(configs, copies)]


def _changed(before: Mapping[str, Any], after: Mapping[str, Any]) -> dict[str, Any]:
    return {k: x for k, x in after.items() if k not in OWN_VALUES and before.get(k) != x}


def _change(config: Any, before: Mapping[str, Any], after: Mapping[str, Any]) -> None:
    for name, value in _changed(before, after).items():
        part = getattr(config, name, None)
        if isinstance(part, PreTrainedConfig):
            _change(part, before.get(name) or {}, value)
        else:
            setattr(config, name, value)
