"""The forward pre-hook of the whole model: what is lost, or made, on the way to its decoder."""

from __future__ import annotations

from typing import Any

from ahn.hf.attached_state import AttachedState
from ahn.hf.cache_argument import cache_argument, check_cache_type, under_known_name, wants_cache
from ahn.hf.hooks import Arguments, mode_of
from ahn.hf.inputs import by_name
from ahn.hf.rope_offset import next_positions, placed_positions
from ahn.layer.cache import AHNCache


class ModelHook:
    """Before the model: refuse a wrong cache by the name that it was given under.

    transformers may rename the keyword, or drop one of two, before the decoder is called. A
    composite model may make a cache of its own, and count on from the image that it saw last.
    """

    def __init__(self, state: AttachedState) -> None:
        self.state = state

    def __call__(self, model: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Arguments:
        name, cache = cache_argument(kwargs)
        is_bounded = mode_of(kwargs.get("ahn_mode"), self.state).is_bounded
        check_cache_type(name, cache, is_bounded)
        if is_bounded and model.get_decoder().config is not model.config:
            args, kwargs = (), by_name(model, args, kwargs)
            _settle_parts(model, name, cache, kwargs)
        return args, under_known_name(kwargs)


def _settle_parts(model: Any, name: str, cache: Any, kwargs: dict[str, Any]) -> None:
    """The cache and the positions that a composite model would make otherwise."""
    if kwargs.get("position_ids") is not None:
        return
    if cache is None and wants_cache(model.get_decoder(), kwargs):
        kwargs[name] = AHNCache(model.config)
    elif (position := kwargs.get("ahn_position")) is not None:
        kwargs["position_ids"] = placed_positions(cache, position)
    elif cache is not None:
        kwargs["position_ids"] = next_positions(model, cache, kwargs)
