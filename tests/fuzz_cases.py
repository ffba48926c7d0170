"""How many cases Hypothesis tries of each kind: a few, or `AHN_CASES` of all kinds together.

The few are the same every time; those of a job of their own are new ones.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from typing import Any

from hypothesis import HealthCheck, settings
from hypothesis import strategies as st

CASES = int(os.environ.get("AHN_CASES", "0"))
FEW = 24
SHARES = {  # of all cases
    "a memory's files": 0.1,
    "a memory's bytes": 0.12,
    "a model's files": 0.05,
    "a model's bytes": 0.05,
    "settings": 0.12,
    "a settings file": 0.1,
    "a session's bytes": 0.08,
    "a session's content": 0.12,
    "a conversation": 0.12,
    "a row": 0.08,
    "a schedule": 0.06,
}
NAMED = (ValueError, OSError)  # what users are told of in one line; anything else is a traceback


def cases(kind: str, over: int = 1) -> settings:
    """Settings of the test that tries this kind, which has so many parameters."""
    number = SHARES[kind] * CASES if CASES else FEW
    return settings(
        max_examples=max(3, round(number / over)),
        derandomize=not CASES,
        database=None,
        deadline=None,
        suppress_health_check=list(HealthCheck),
    )


def outcome(function: Callable[..., Any], *arguments: Any) -> tuple[Any, str]:
    """What a function gives and an empty text, or None and why it refuses."""
    try:
        return function(*arguments), ""
    except NAMED as error:
        assert str(error).strip(), "an error without a word"
        return None, str(error)


def json_values(names: tuple[str, ...] = (), words: tuple[str, ...] = ()) -> st.SearchStrategy:
    """Anything that JSON can say, often with these keys and these words."""
    keys = st.sampled_from(names) | st.text(max_size=6) if names else st.text(max_size=6)
    texts = st.sampled_from(words) | st.text(max_size=12) if words else st.text(max_size=12)
    plain = st.none() | st.booleans() | st.integers() | st.floats() | texts
    return st.recursive(
        plain,
        lambda inner: st.lists(inner, max_size=4) | st.dictionaries(keys, inner, max_size=4),
        max_leaves=8,
    )


@st.composite
def replaced(draw: Any, value: Any, values: st.SearchStrategy) -> Any:
    """A JSON value of which one part is missing, is another or is there twice."""
    if not (isinstance(value, (dict, list)) and value) or not draw(st.integers(0, 3)):
        return draw(values)
    places = sorted(value) if isinstance(value, dict) else range(len(value))
    place = draw(st.sampled_from(places))
    changed = dict(value) if isinstance(value, dict) else list(value)
    how = draw(st.sampled_from(("drop", "more", "change", "change")))
    if how == "drop":
        changed.pop(place)
    elif how == "change":
        changed[place] = draw(replaced(value[place], values))
    elif isinstance(changed, dict):
        changed[draw(st.text(max_size=6))] = draw(values)
    else:
        changed.insert(place, draw(values))
    return changed


@st.composite
def damaged(draw: Any, data: bytes) -> bytes:
    """The same bytes after one damage: bits, blocks, a cut, something in between or behind."""
    place = draw(st.integers(0, max(0, len(data) - 1)))
    end = min(len(data), place + draw(st.integers(1, 64)))
    noise = draw(st.binary(min_size=1, max_size=64))
    bit = bytes([data[place] ^ 1 << draw(st.integers(0, 7))]) if data else noise
    kinds = {
        "bit": data[:place] + bit + data[place + 1 :],
        "cut": data[:place],
        "zeros": data[:place] + bytes(end - place) + data[end:],
        "noise": data[:place] + noise + data[place + len(noise) :],
        "gone": data[:place] + data[end:],
        "twice": data[:end] + data[place:],
        "between": data[:place] + noise + data[place:],
        "behind": data + noise,
    }
    return kinds[draw(st.sampled_from(sorted(kinds)))]
