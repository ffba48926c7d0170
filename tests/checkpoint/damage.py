"""Ways to damage a checkpoint's files, by chance."""

from __future__ import annotations

import json
import random
from pathlib import Path

import torch
from safetensors.torch import load_file

from ahn.checkpoint.names import BASE_FACTS
from ahn.io.checksum import INDEX, metadata_of, write_tensors
from ahn.modeling.saving import is_memory


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
        state, written_with = load_file(path), metadata_of(path)
        change(state, chance.choice(sorted(state)), chance)
        write_tensors(path, state, written_with)

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


def memory_shard(folder: Path) -> Path:
    return next(
        p for p in sorted(folder.glob("*.safetensors")) if any(map(is_memory, load_file(p)))
    )


def base_shard(folder: Path) -> Path:
    return next(p for p in sorted(folder.glob("*.safetensors")) if "lm_head.weight" in load_file(p))


def of_shard(find, damage):
    return lambda folder, chance: damage(find(folder), chance)


def flip_number(path: Path, chance: random.Random) -> None:
    flip(path, chance, 8 + int.from_bytes(path.read_bytes()[:8], "little"))


def swap_bytes(path: Path, chance: random.Random) -> None:
    data = bytearray(path.read_bytes())
    one, first = chance.randrange(len(data)), chance.randrange(len(data))
    others = (i for i in (*range(first, len(data)), *range(first)) if data[i] != data[one])
    other = next(others)
    data[one], data[other] = data[other], data[one]
    path.write_bytes(data)


def swap_shards(folder: Path, chance: random.Random) -> None:
    one, other = base_shard(folder), memory_shard(folder)
    one_bytes = one.read_bytes()
    one.write_bytes(other.read_bytes())
    other.write_bytes(one_bytes)


def wrong_sum(folder: Path, chance: random.Random) -> None:
    values = json.loads((folder / INDEX).read_text())
    sums = values["metadata"]["sha256"]
    name = chance.choice(sorted(sums))
    sums[name] = sums[name][::-1]
    (folder / INDEX).write_text(json.dumps(values))


def index_without(folder: Path, chance: random.Random) -> None:
    values = json.loads((folder / INDEX).read_text())
    values["weight_map"].pop(chance.choice(sorted(values["weight_map"])))
    (folder / INDEX).write_text(json.dumps(values))


def other_size(folder: Path, chance: random.Random) -> None:
    values = json.loads((folder / "config.json").read_text())
    values[chance.choice(["hidden_size", "num_hidden_layers", "intermediate_size"])] += 16
    values.pop("layer_types")  # else transformers stops at a list of another length
    (folder / "config.json").write_text(json.dumps(values))


MERGED = {  # damages to a folder of base and memory in one
    "memory truncated": of_shard(memory_shard, truncate),
    "memory bit flipped": of_shard(memory_shard, flip),
    "memory tensor missing": of_shard(memory_shard, WEIGHTS["missing"]),
    "memory tensor extra": of_shard(memory_shard, WEIGHTS["extra"]),
    "memory tensor misshapen": of_shard(memory_shard, WEIGHTS["misshapen"]),
    "base bit flipped": of_shard(base_shard, flip),
    "base bit flipped in its numbers": of_shard(base_shard, flip_number),
    "base bytes swapped": of_shard(base_shard, swap_bytes),
    "two shards swapped": swap_shards,
    "checksum changed": wrong_sum,
    "base truncated": of_shard(base_shard, truncate),
    "base tensor missing": of_shard(base_shard, WEIGHTS["missing"]),
    "shard gone": lambda folder, chance: chance.choice(
        sorted(folder.glob("*.safetensors"))).unlink(),
    "index without a tensor": index_without,
    "index broken": lambda folder, chance: break_json(folder / INDEX, chance),
    "config truncated": lambda folder, chance: truncate(folder / "config.json", chance),
    "config of another size": other_size,
}  # fmt: skip
