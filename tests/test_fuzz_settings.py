"""Settings of any content: refused by name, or held, written and read as they were given."""

from __future__ import annotations

import json
from dataclasses import fields

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ahn import AHNConfig
from ahn.checkpoint.settings import LEGACY, read_settings, to_legacy
from fuzz_cases import cases, json_values, outcome, replaced

NAMES = [f.name for f in fields(AHNConfig)]
SHARE = st.floats(0, 1) | st.sampled_from([0.5, 0.25, 0.0, 1.0])
LIKELY = {  # what a setting might be
    "memory": st.sampled_from(["GatedDeltaNet", "Mamba2", "x", None]),
    "window": st.integers(0, 2**70),
    "num_sinks": st.integers(-1, 200),
    "full_attention_layers": st.lists(st.integers(-1, 4), max_size=3),
    "use_q_proj": st.booleans(),
    "use_router": st.booleans(),
    "slots": st.integers(-1, 2**40),
    "slot_bits": st.sampled_from([16, 8, 4, 2]),
    "slot_shares": st.lists(st.lists(SHARE, min_size=1, max_size=2), max_size=3),
    "slot_distance": st.integers(0, 2**70),
    "slot_beyond": st.sampled_from(["clamp", "drop", "x"]),
    "window_shares": st.lists(SHARE, max_size=3),
}


@st.composite
def settings_like(draw):
    """A few settings, most of them likely ones, and sometimes what is none."""
    values = {}
    for name in draw(st.lists(st.sampled_from(NAMES), unique=True, max_size=6)):
        is_likely = draw(st.integers(0, 4))
        values[name] = draw(LIKELY[name] if is_likely else json_values(tuple(NAMES)))
    if not draw(st.integers(0, 9)):
        values[draw(st.text(max_size=8))] = draw(json_values())
    return values


def as_given(value):
    return tuple(map(as_given, value)) if isinstance(value, list) else value


@given(values=settings_like())
@cases("settings")
def test_settings_are_refused_or_held(values):
    config, why = outcome(AHNConfig.from_dict, values)
    if why:
        assert ": expected " in why and "\n" not in why
        return
    for name, value in values.items():
        held, wanted = getattr(config, name), as_given(value)
        if name == "full_attention_layers":
            wanted = tuple(sorted(set(value)))
        assert held == wanted and isinstance(held, bool) == isinstance(wanted, bool), name
    assert AHNConfig.from_dict(json.loads(json.dumps(config.to_dict()))) == config
    assert config.budget >= 1 and hash(config)
    _, why = outcome(to_legacy, config)
    assert (why != "") == bool({*config.to_dict()} - {*LEGACY.values()})


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return tmp_path_factory.mktemp("settings")


@given(data=st.data())
@cases("a settings file")
def test_a_settings_file_is_refused_or_read_as_it_stands(folder, data):
    """Of both layouts, with anything in the place of what belongs there."""
    layout = data.draw(st.sampled_from(["ahn", "released"]))
    name = {"ahn": "ahn_config.json", "released": "config.json"}[layout]
    config = AHNConfig("DeltaNet", 256, 4, (1,))
    whole = {"base": {"hidden_size": 64}, "ahn_config": config.to_dict()}
    if layout == "released":
        whole = {"hidden_size": 64, "model_type": "qwen2", **to_legacy(config)}
    known = (*whole, *NAMES)
    values = data.draw(replaced(whole, json_values(known)))
    for path in folder.iterdir():
        path.unlink()
    (folder / name).write_text(json.dumps(values))
    read, why = outcome(read_settings, folder)
    if not why:
        settings, _, found = read
        written = settings.to_dict() if layout == "ahn" else to_legacy(settings)
        stands = values["ahn_config"] if layout == "ahn" else values
        assert found == layout
        for key, value in written.items():
            if key in stands and stands[key] is not None:
                assert _alike(key, stands[key], value), key


def _alike(key, stands, value):
    if key in ("full_attention_layers", "fa_layer_ids"):
        parts = [x for x in stands.split(",") if x.strip()] if isinstance(stands, str) else stands
        held = [x for x in value.split(",") if x] if isinstance(value, str) else value
        return {*map(int, parts)} == {*map(int, held)}
    return stands == value
