"""The cache layers of transformers that lie beside those with a memory, whatever their kind.

They hold keys and values of all tokens or of a sliding window, or the states of a recurrence. What
a cache does with the rows of a batch is done here for all of them alike.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor


def tensors_of(layer: Any) -> dict[str, Tensor]:
    """What a layer holds of a text, `[B, ...]` by name: `keys`, ..., `recurrent_states.0`."""
    tensors = {}
    for name, value in vars(layer).items():
        parts = value.items() if isinstance(value, dict) else [(None, value)]
        for number, x in parts:
            if isinstance(x, Tensor) and x.numel() and x.ndim:  # no constant, and not yet empty
                tensors[name if number is None else f"{name}.{number}"] = x
    return tensors


def set_tensor(layer: Any, name: str, tensor: Tensor) -> None:
    """Hold a tensor under a name as `tensors_of` gives it."""
    kind, _, number = name.partition(".")
    if number:
        getattr(layer, kind)[int(number)] = tensor
    else:
        setattr(layer, name, tensor)
    layer.dtype, layer.device = tensor.dtype, tensor.device


def can_hold(layer: Any, name: str) -> bool:
    """Whether a layer may hold a tensor under that name."""
    kind, _, number = name.partition(".")
    held = vars(layer).get(kind, ...)
    if isinstance(held, dict):
        return number.isdigit() and int(number) in held
    return not number and held is not ... and not isinstance(held, (bool, int, str))


def drop_tokens(layer: Any) -> None:
    """Hold no token's keys and values: some versions of transformers reset them to zeros."""
    for name in ("keys", "values"):
        held = getattr(layer, name, None)
        if isinstance(held, Tensor) and held.ndim == 4:
            setattr(layer, name, held[:, :, :0])


def map_rows(layer: Any, change: Callable[[Tensor], Tensor]) -> None:
    """Replace every tensor held by what `change` makes of its rows."""
    for name, tensor in tensors_of(layer).items():
        set_tensor(layer, name, change(tensor))


def counters_of(layer: Any) -> dict[str, Any]:
    """The numbers, flags and names that a layer holds beside its tensors, ready for JSON."""
    values = {}
    for name, value in vars(layer).items():
        if isinstance(value, dict):
            if all(_is_plain(x) for x in value.values()):
                values[name] = {str(number): x for number, x in value.items()}
        elif _is_plain(value):
            values[name] = value
    return values


def set_counters(layer: Any, values: dict[str, Any]) -> None:
    """Set what `counters_of` gave. Raises ValueError where the layer knows no such name."""
    for name, value in values.items():
        if name not in vars(layer):
            raise ValueError(f"counter {name!r} of no layer of the model")
        if isinstance(value, dict):
            value = {int(number): x for number, x in value.items()}
        setattr(layer, name, value)


def _is_plain(value: Any) -> bool:
    return value is None or isinstance(value, (bool, int, str))


def join_layers(layers: Sequence[Any]) -> Any:
    """One layer with the rows of all, a copy; a shorter text has padding on its left."""
    result = copy.copy(layers[0])
    named = [tensors_of(layer) for layer in layers]
    for attribute, value in vars(result).items():
        if isinstance(value, dict):
            setattr(result, attribute, dict(value))
    for name in named[0]:
        parts = [tensors[name] for tensors in named]
        if name in ("keys", "values"):
            longest = max(x.shape[-2] for x in parts)
            parts = [F.pad(x, (0, 0, longest - x.shape[-2], 0)) for x in parts]
        set_tensor(result, name, torch.cat(parts))
    if hasattr(result, "cumulative_length"):
        result.cumulative_length = max(layer.cumulative_length for layer in layers)
    return result


def crop_unsupported_reason(layer: Any) -> str | None:
    """Why the last tokens of a layer cannot be taken back; None where they can."""
    if hasattr(layer, "recurrent_states"):
        return "no recurrent layers, got one, whose state cannot be taken back"
    window = getattr(layer, "sliding_window", None)
    if window is not None and layer.get_seq_length() >= window:
        return f"fewer tokens than the model's own window of {window}, got {layer.get_seq_length()}"
    return None
