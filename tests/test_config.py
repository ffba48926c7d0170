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
    ],
    ids=str,
)
def test_wrong_values_are_refused_by_name(wrong):
    (name,) = wrong
    with pytest.raises(ValueError, match=f"{name}: expected .*, got ") as error:
        AHNConfig(**wrong)
    assert "\n" not in str(error.value)


def test_dict_form_survives_json():
    config = AHNConfig("Mamba2", 256, 4, [3, 1, 3], use_q_proj=True, use_router=True)
    assert config.full_attention_layers == (1, 3)
    assert AHNConfig.from_dict(json.loads(json.dumps(config.to_dict()))) == config
    assert config.budget == 260


def test_unknown_keys_are_refused_by_name():
    with pytest.raises(ValueError, match=r"memory config: expected keys among .*sliding_window"):
        AHNConfig.from_dict({"window": 4, "sliding_window": 4})


def test_it_is_frozen_and_hashable():
    config = AHNConfig()
    with pytest.raises(dataclasses.FrozenInstanceError):
        config.window = 3
    assert hash(config) == hash(AHNConfig())
