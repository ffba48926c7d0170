"""Settings are checked when they are made, and survive JSON."""

import dataclasses
import json

import pytest

from ahn import AHNConfig


@pytest.mark.parametrize(
    "wrong",
    [
        {"window": 0},
        {"window": 1.5},
        {"window": True},
        {"window": "256"},
        {"window": None},
        {"num_sinks": -1},
        {"memory": ""},
        {"memory": None},
        {"use_q_proj": 1},
        {"use_router": "yes"},
        {"full_attention_layers": 3},
        {"full_attention_layers": "01"},
        {"full_attention_layers": [-1]},
        {"full_attention_layers": [0.5]},
        {"slots": -1},
        {"slots": 2.5},
        {"slots": True},
        {"slot_bits": 5, "slots": 8},
        {"slot_bits": True, "slots": 8},
        {"slot_bits": 8},
        {"slot_shares": [[0.5, 0.5]]},
        {"slot_shares": [[0.5, 0.4]], "slots": 8},
        {"slot_shares": [[1.5, -0.5]], "slots": 8},
        {"slot_shares": [[0.5, float("nan")]], "slots": 8},
        {"slot_shares": [[0.5], [0.25, 0.25]], "slots": 8},
        {"slot_shares": [], "slots": 8},
        {"slot_shares": [0.5, 0.5], "slots": 8},
        {"slot_shares": [["a"]], "slots": 8},
        {"slot_shares": [[1.0]], "slots": 8, "full_attention_layers": [0]},
        {"slot_shares": [[1.0]], "slots": 8, "full_attention_layers": [1]},
        {"slot_distance": 0, "slots": 8},
        {"slot_distance": 8},
        {"slot_distance": 8, "slots": 8, "window": 8, "num_sinks": 1},
        {"slot_beyond": "turn", "slots": 8},
        {"slot_beyond": "drop", "slots": 8},
        {"window_shares": [0.5, 0.6]},
        {"window_shares": 1.0},
        {"window_shares": [0.5, 0.5], "full_attention_layers": [1]},
    ],
    ids=str,
)
def test_wrong_values_are_refused_by_name(wrong):
    name = next(iter(wrong))
    with pytest.raises(ValueError, match=f"{name}: expected .*, got ") as error:
        AHNConfig(**wrong)
    assert "\n" not in str(error.value)


def test_dict_form_survives_json():
    config = AHNConfig("Mamba2", 256, 4, [3, 1, 3], use_q_proj=True, use_router=True)
    assert config.full_attention_layers == (1, 3)
    assert AHNConfig.from_dict(json.loads(json.dumps(config.to_dict()))) == config
    assert config.budget == 260


def test_slots_and_shares_survive_json():
    config = AHNConfig(
        None, 256, 4, (2,), slots=100, slot_bits=4,
        slot_shares=[[0, 0], [0.25, 0.75], [0, 0]], window_shares=[0.25, 0.75, 0],
    )  # fmt: skip
    assert AHNConfig.from_dict(json.loads(json.dumps(config.to_dict()))) == config
    assert hash(config)
    assert [config.slots_of(i, 2) for i in range(3)] == [(0, 0), (150, 450), (0, 0)]
    assert config.windows == (128, 384, 0)
    assert config.budget == 128 + 4
    assert config.with_budget(window=4).windows == (2, 6, 0)


def test_settings_of_old_files_have_no_new_keys():
    old = {"memory", "window", "num_sinks", "full_attention_layers", "use_q_proj", "use_router"}
    assert set(AHNConfig().to_dict()) == old
    assert set(AHNConfig(slots=8).to_dict()) == {*old, "slots"}


@pytest.mark.parametrize(
    "wrong", [{}, {"slots": 8, "use_q_proj": True}, {"slots": 8, "use_router": True}], ids=str
)
def test_without_a_cell_there_are_slots_and_nothing_of_a_cell(wrong):
    with pytest.raises(ValueError, match=r"expected .* got ") as error:
        AHNConfig(memory=None, **wrong)
    assert "\n" not in str(error.value)


def test_unknown_keys_are_refused_by_name():
    with pytest.raises(ValueError, match=r"memory config: expected keys among .*sliding_window"):
        AHNConfig.from_dict({"window": 4, "sliding_window": 4})


def test_it_is_frozen_and_hashable():
    config = AHNConfig()
    with pytest.raises(dataclasses.FrozenInstanceError):
        config.window = 3
    assert hash(config) == hash(AHNConfig())
