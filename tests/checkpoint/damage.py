"""Ways to damage a checkpoint's files, by chance."""

from __future__ import annotations

import json
import random
from pathlib import Path

import torch
from safetensors.torch import load_file

from ahn.checkpoint.names import BASE_FACTS
from ahn.io.checksum import write_tensors


class RunsCode:
    """What a pickle does when it is loaded: it makes a file."""

    def __init__(self, mark: Path) -> None:
        self.mark = mark

    def __reduce__(self):
        return (Path.touch, (self.mark,))


def truncate(path: Path, chance: random.Random) -> None:
    path.write_bytes(path.read_bytes()[: chance.randrange(path.stat().st_size)])


def flip(path: Path, chance: random.Random, first: int = 0, last: int | None = None) -> None:
    data = bytearray(path.read_bytes())
    data[chance.randrange(first, len(data) if last is None else last)] ^= 1 << chance.randrange(8)
    path.write_bytes(bytes(data))


def flip_header(path: Path, chance: random.Random) -> None:
    flip(path, chance, 0, 8 + int.from_bytes(path.read_bytes()[:8], "little"))


def rewrite(change):
    """A damage to the tensors, in a file that is itself sound."""

    def damage(path: Path, chance: random.Random) -> None:
        state = load_file(path)
        change(state, chance.choice(sorted(state)), chance)
        write_tensors(path, state)

    return damage


def swap_shape(state, key, chance):
    state[key] = torch.zeros(*state[key].shape, chance.randrange(2, 5))


def rename(state, key, chance):
    state[key + chance.choice("xyz")] = state.pop(key)


WEIGHTS = {  # damages to a memory's weights
    "truncated": truncate,
    "bit flipped in the header": flip_header,
    "empty": lambda path, chance: path.write_bytes(b""),
    "noise": lambda path, chance: path.write_bytes(chance.randbytes(chance.randrange(1, 999))),
    "missing": rewrite(lambda state, key, chance: state.pop(key)),
    "renamed": rewrite(rename),
    "extra": rewrite(lambda state, key, chance: state.update({key + ".more": torch.ones(2)})),
    "misshapen": rewrite(swap_shape),
    "of integers": rewrite(lambda state, key, chance: state.update({key: state[key].int()})),
    "not finite": rewrite(lambda state, key, chance: state[key].fill_(float("inf"))),
    "with base weights": rewrite(lambda state, key, chance: state.update({"x": torch.ones(2)})),
    "a folder": lambda path, chance: (path.unlink(), path.mkdir()),
}
OUR_VALUES = {
    "window": [0, -1, 1.5, "many", None, [], True],
    "num_sinks": [-1, 0.5, "x", None],
    "memory": ["", "LSTM", 3, None],
    "full_attention_layers": ["x", [99], [-1], 3, [0.5]],
    "use_q_proj": ["yes", 1],
    "more": [1],
}
LEGACY_VALUES = {
    "sliding_window": [0, -1, 1.5, "many", [], True],
    "num_attn_sinks": [-1, 0.5, "x"],
    "_ahn_implementation": ["", "LSTM", 3],
    "fa_layer_ids": ["x", "0;1", [99], [-1], 3],
    "use_q_proj": ["yes", 1],
}


def break_json(path: Path, chance: random.Random) -> None:
    text = path.read_text()
    cut = chance.randrange(1, len(text) - 2)
    broken = [
        text[:cut],
        "[" + text + "]",
        text.replace(":", ";", 1),
        "",
        "\x00" + text,
        "{" * 9999,
    ]
    path.write_text(chance.choice(broken))


def wrong_value(path: Path, chance: random.Random) -> None:
    values = json.loads(path.read_text())
    ours = "ahn_config" in values
    table = OUR_VALUES if ours else LEGACY_VALUES
    name = chance.choice(sorted(table))
    (values["ahn_config"] if ours else values)[name] = chance.choice(table[name])
    path.write_text(json.dumps(values))


def wrong_base(path: Path, chance: random.Random) -> None:
    values = json.loads(path.read_text())
    name = chance.choice([fact for fact in BASE_FACTS if fact != "head_dim"])
    facts = values.get("base", values)
    facts[name] = "mistral" if name == "model_type" else facts[name] * 2
    path.write_text(json.dumps(values))


CONFIGS = {"broken JSON": break_json, "a wrong value": wrong_value, "another base": wrong_base}
