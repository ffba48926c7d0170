"""Sessions of any content: one that was changed is refused in one line, or is what was saved."""

from __future__ import annotations

import json

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from safetensors.torch import load_file

from ahn.generation import load_session, prefill, save_session
from ahn.io.checksum import metadata_of, write_tensors
from fuzz_cases import cases, damaged, json_values, outcome, replaced
from tiny_models import left_padded, random_ids, shared_model

WORDS = ("seen", "max_padding", "mode", "kind", "memory", "window", "full", "layers")
NUMBERS = (float("nan"), float("inf"), 0.0, 1.0)


@pytest.fixture(scope="module")
def sessions(tmp_path_factory):
    """Sessions of a text within the budget, of one beyond it, and of rows with padding."""
    folder, model = tmp_path_factory.mktemp("sessions"), shared_model()
    _, ids, mask = left_padded((40, 25))
    caches = {
        "short": prefill(model, random_ids(9))[1],
        "long": prefill(model, random_ids(40))[1],
        "padded": prefill(model, ids, attention_mask=mask)[1],
    }
    for name, cache in caches.items():
        save_session(cache, folder / name)
    return folder


def contents(cache):
    counters = [(x.seen, x.max_padding, x.mode) for x in cache.layers]
    return counters, [x.tensors() for x in cache.layers]


def is_same(cache, other) -> bool:
    (counters, tensors), (others, more) = contents(cache), contents(other)
    return counters == others and all(
        a.keys() == b.keys() and all(torch.equal(a[k], b[k]) for k in a)
        for a, b in zip(tensors, more)
    )


@given(name=st.sampled_from(["short", "long", "padded"]), data=st.data())
@cases("a session's bytes")
def test_any_changed_bytes_of_a_session_are_seen(sessions, name, data):
    whole, path = (sessions / name).read_bytes(), sessions / "changed"
    changed = data.draw(damaged(whole))
    path.write_bytes(changed)
    _, why = outcome(load_session, path, shared_model())
    assert (why == "") == (changed == whole)
    assert not why or ("changed: expected a session of this model" in why and "\n" not in why)


@st.composite
def changes(draw, names):
    """What happens to one of these tensors."""
    kinds = ("gone", "renamed", "another's", "more", "flat", "turned", "shorter", "doubled",
             "of another dtype", "of other numbers")  # fmt: skip
    return {
        "kind": draw(st.sampled_from(kinds)),
        "name": draw(st.sampled_from(names)),
        "other": draw(st.sampled_from(names) | st.text(min_size=1, max_size=9)),
        "dtype": draw(st.sampled_from([torch.float64, torch.float16, torch.int32])),
        "number": draw(st.sampled_from(NUMBERS)),
    }


def changed(tensors, *, kind, name, other, dtype, number):
    """The tensors after one of `changes`."""
    tensor = tensors[name]
    half = tensor[:, : tensor.shape[1] // 2] if tensor.ndim > 1 else tensor[:0]
    change = {
        "gone": {name: None},
        "renamed": {name: None, other: tensor},
        "another's": {name: tensors.get(other)},
        "more": {other: tensor},
        "flat": {name: tensor.flatten()},
        "turned": {name: tensor.transpose(0, -1)},
        "shorter": {name: half},
        "doubled": {name: torch.cat([tensor] * 2)},
        "of another dtype": {name: tensor.to(dtype)},
        "of other numbers": {name: torch.full_like(tensor.double(), number).to(tensor.dtype)},
    }[kind]
    return {k: v.contiguous().clone() for k, v in {**tensors, **change}.items() if v is not None}


@given(name=st.sampled_from(["short", "long", "padded"]), data=st.data())
@cases("a session's content")
@torch.no_grad()
def test_a_session_of_any_content_is_refused_or_can_be_read_on(sessions, name, data):
    """With a checksum that is right. Finite numbers in the place of others cannot be told."""
    path, model = sessions / "changed", shared_model()
    tensors, metadata = load_file(sessions / name), metadata_of(sessions / name)
    header = json.loads(metadata["header"])
    of_tensors = data.draw(st.booleans())
    if of_tensors:
        tensors = changed(tensors, **data.draw(changes(sorted(tensors))))
    else:
        header = data.draw(replaced(header, json_values(WORDS, WORDS)))
    write_tensors(path, tensors, {**metadata, "header": json.dumps(header)})
    cache, why = outcome(load_session, path, model)
    if why:
        assert "changed: expected a session of this model" in why and "\n" not in why
        return
    assert of_tensors or is_same(cache, load_session(sessions / name, model))
    assert prefill(model, random_ids(5, batch=len(cache.layers[0].keys)), cache)[0].isfinite().all()
