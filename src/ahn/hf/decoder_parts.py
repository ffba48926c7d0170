"""The parts of a decoder, by the names that families give them, and what their code does."""

from __future__ import annotations

import inspect
import sys
from collections.abc import Iterable, Iterator
from types import CodeType
from typing import Any

from torch import nn

ATTENTIONS = ("self_attn", "mixer", "attention")  # of a layer
OUTPUT_MAPS = ("o_proj", "out_proj", "dense")  # of an attention


def decoder_of(model: nn.Module) -> Any:
    """The text decoder of a model, attached or not."""
    return with_layers(model.get_decoder())  # type: ignore[operator]


def with_layers(decoder: Any) -> Any:
    """The module with the layers, where transformers gives what is around it (Llama 4)."""
    return decoder if hasattr(decoder, "layers") else getattr(decoder, "model", decoder)


def decoder_layers(model: nn.Module) -> Any:
    """The decoder's layers in order."""
    return decoder_of(model).layers


def attention_of(layer: nn.Module) -> Any:
    """The attention of a layer, or what is in its place; None where there is no such part."""
    return _first_part(layer, ATTENTIONS)


def output_map(attention: nn.Module) -> Any:
    """The last linear map of an attention; None where it has another name."""
    return _first_part(attention, OUTPUT_MAPS)


def asks_interface(attention: nn.Module) -> bool:
    """Whether a `forward` of its class, or of one above, asks transformers for the function."""
    return any("ALL_ATTENTION_FUNCTIONS" in code.co_names for code in _forward_codes(attention))


def accepts_keywords(module: nn.Module) -> bool:
    """Whether `forward` takes any keyword arguments."""
    return _keywords_of(module) is not None


def passes_keywords(module: nn.Module) -> bool:
    """Whether `forward` takes any keyword arguments and passes them on to another call."""
    name, forward = _keywords_of(module), inspect.unwrap(type(module).forward)
    return name is not None and inspect.getsource(forward).count(f"**{name}") > 1


def own_cache(decoder: nn.Module) -> str | None:
    """The class of cache of its own that a decoder's `forward` asks for; None where it has none."""
    module = type(decoder).__module__
    for code in _forward_codes(decoder):
        for name in code.co_names:
            named = getattr(sys.modules[module], name, None)
            if name.endswith("Cache") and getattr(named, "__module__", None) == module:
                return name
    return None


def begins_anew(layer: nn.Module) -> nn.Module | None:
    """The part of a layer whose recurrence forgets its state at every chunk; None without one.

    Mamba's first version does in transformers: several tokens are scanned from an empty state, and
    the one in the cache serves single tokens alone.
    """
    for module in layer.modules():
        if any(
            name.endswith("selective_scan") for x in _forward_codes(module) for name in x.co_names
        ):
            source = inspect.getsource(inspect.unwrap(type(module).forward))
            if "initial_state" not in source:
                return module
    return None


def _first_part(module: nn.Module, names: Iterable[str]) -> Any:
    parts = (getattr(module, name, None) for name in names)
    return next((part for part in parts if part is not None), None)


def _forward_codes(module: nn.Module) -> Iterator[CodeType]:
    forwards = (vars(cls).get("forward") for cls in type(module).__mro__)
    codes = (inspect.unwrap(forward).__code__ for forward in forwards if forward is not None)
    return (code for code in codes if code is not None)


def _keywords_of(module: nn.Module) -> str | None:
    parameters = inspect.signature(type(module).forward).parameters.values()
    return next((x.name for x in parameters if x.kind is x.VAR_KEYWORD), None)
