"""A save over another one, cut short anywhere: what loads is one of the two, or is refused."""

from __future__ import annotations

import json
import random
from pathlib import Path

import pytest
import torch
from damage import flip, flip_header
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM

import ahn
from ahn.checkpoint import merge, read_memory
from ahn.checkpoint.memory import files_of
from ahn.checkpoint.names import CONFIG_FILE, FORMATS, WEIGHTS_FILE
from ahn.io.checksum import CHECKSUM, INDEX, SUMS, metadata_of, write_tensors
from ahn.io.keys import is_memory
from checkpoint_folders import save_base, save_memory
from tiny_models import memory_parameters, new_model, shared_model


def other_model(window=9):
    """As `shared_model`, with another memory and window."""
    model = new_model(window=window)
    with torch.no_grad():
        for parameter in memory_parameters(model).values():
            parameter.mul_(1.25)
    return model


def killed_at(monkeypatch, number, work):
    """Do something that ends at the `number`-th file that would take its place."""
    replace, left = Path.replace, [number]

    def count(self, target):
        left[0] -= 1
        if left[0] < 0:
            raise KeyboardInterrupt
        return replace(self, target)

    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(Path, "replace", count)
        work()


def of_state(state):
    return torch.cat([x.flatten() for _, x in sorted(state.items())])


@pytest.mark.filterwarnings("ignore:.*expected the config of")
@pytest.mark.parametrize("new_layout", FORMATS)
@pytest.mark.parametrize("old_layout", FORMATS)
@pytest.mark.parametrize("number", [0, 1])
def test_a_memory_over_another(number, old_layout, new_layout, tmp_path, monkeypatch):
    old, new = shared_model(), other_model()
    ahn.save_pretrained(old, tmp_path, format=old_layout)
    killed_at(monkeypatch, number, lambda: ahn.save_pretrained(new, tmp_path, format=new_layout))
    read = read_memory(tmp_path)
    known = {16: old, 9: new}[read.settings.window]
    mine = {k: x for k, x in known.state_dict().items() if is_memory(k)}
    assert torch.equal(of_state(read.state), of_state(mine))
    assert (known is new) == (number > 0 and old_layout == new_layout)
    ahn.save_pretrained(new, tmp_path, format=new_layout)
    read = read_memory(tmp_path)
    assert (read.settings.window, read.layout) == (9, new_layout)


def test_a_config_of_other_weights_is_said(tmp_path, recwarn):
    ahn.save_pretrained(shared_model(), tmp_path)
    config = (tmp_path / CONFIG_FILE).read_text()
    ahn.save_pretrained(other_model(), tmp_path)
    (tmp_path / CONFIG_FILE).write_text(config)
    assert read_memory(tmp_path).settings.window == 9
    assert "expected the config of ahn_model.safetensors" in str(recwarn.list[0].message)


@pytest.mark.parametrize("layout", FORMATS)
def test_an_edited_config_is_refused(layout, tmp_path):
    ahn.save_pretrained(shared_model(), tmp_path, format=layout)
    path = tmp_path / files_of(layout)[0]
    values = json.loads(path.read_text())
    place = values["ahn_config"] if layout == "ahn" else values
    place["window" if layout == "ahn" else "sliding_window"] = 10**6
    path.write_text(json.dumps(values))
    with pytest.raises(ValueError, match="expected the settings and the base that"):
        read_memory(tmp_path)


def test_weights_that_say_nothing_are_not_those_of_the_config(tmp_path):
    ahn.save_pretrained(shared_model(), tmp_path)
    write_tensors(tmp_path / WEIGHTS_FILE, load_file(tmp_path / WEIGHTS_FILE))
    with pytest.raises(ValueError, match=f"{WEIGHTS_FILE}: expected the checksum that"):
        read_memory(tmp_path)


def test_a_memory_of_0_1_0_loads(tmp_path):
    """Its weights say nothing of settings, and its config names no checksum."""
    ahn.save_pretrained(shared_model(), tmp_path)
    write_tensors(tmp_path / WEIGHTS_FILE, load_file(tmp_path / WEIGHTS_FILE))
    values = json.loads((tmp_path / CONFIG_FILE).read_text())
    values.pop("ahn_weights_sha256")
    (tmp_path / CONFIG_FILE).write_text(json.dumps(values))
    assert read_memory(tmp_path).settings.window == 16


@pytest.mark.parametrize("shard", ["50GB", "100KB"])
@pytest.mark.parametrize("number", range(4))
def test_an_attached_model_over_another(number, shard, tmp_path, monkeypatch):
    old, new = shared_model(), other_model()
    old.save_pretrained(tmp_path)
    killed_at(monkeypatch, number, lambda: new.save_pretrained(tmp_path, max_shard_size=shard))
    try:
        loaded = AutoModelForCausalLM.from_pretrained(tmp_path)
    except ValueError:
        loaded = None
    if loaded is not None:
        known = {16: old, 9: new}[loaded.config.ahn_config["window"]]
        assert torch.equal(of_state(loaded.state_dict()), of_state(known.state_dict()))
    new.save_pretrained(tmp_path, max_shard_size=shard)
    assert AutoModelForCausalLM.from_pretrained(tmp_path).config.ahn_config["window"] == 9
    assert not [path for path in tmp_path.iterdir() if "partial" in path.name]


@pytest.mark.parametrize("shards", [("50GB", "100KB"), ("100KB", "50GB"), ("100KB", "60KB")])
def test_weights_of_an_earlier_save_go(shards, tmp_path):
    for model, shard in zip((shared_model(), other_model()), shards):
        model.save_pretrained(tmp_path, max_shard_size=shard)
    loaded = AutoModelForCausalLM.from_pretrained(tmp_path)
    assert torch.equal(of_state(loaded.state_dict()), of_state(other_model().state_dict()))
    names = {path.name for path in tmp_path.glob("*.safetensors*")}
    other_model().save_pretrained(tmp_path / "alone", max_shard_size=shards[1])
    assert names == {path.name for path in (tmp_path / "alone").glob("*.safetensors*")}


@pytest.mark.parametrize("shard", ["50GB", "100KB"])
def test_any_flipped_bit_of_a_saved_model_is_seen(shard, tmp_path):
    shared_model().save_pretrained(tmp_path, max_shard_size=shard)
    for turn in range(30):
        chance = random.Random(turn)
        path = chance.choice([x for x in tmp_path.iterdir() if ".safetensors" in x.name])
        whole = path.read_bytes()
        (flip if turn % 2 else flip_header)(path, chance) if path.suffix != ".json" else flip(
            path, chance
        )
        with pytest.raises(ValueError):
            AutoModelForCausalLM.from_pretrained(tmp_path)
        path.write_bytes(whole)
    AutoModelForCausalLM.from_pretrained(tmp_path)


@pytest.mark.parametrize("make", ["saved", "merged"])
def test_a_changed_config_of_a_whole_model_is_refused(make, tmp_path):
    folder = tmp_path / make
    if make == "saved":
        shared_model().save_pretrained(folder)
    else:
        merge(save_base(tmp_path / "base"), save_memory(tmp_path / "memory"), folder)
    text = (folder / "config.json").read_text()
    for old, new in (('"window": 16', '"window": 17'), ("rms_norm_eps", "rms_norm_epz")):
        assert text.count(old) == 1
        (folder / "config.json").write_text(text.replace(old, new))
        with pytest.raises(ValueError, match=r"config\.json: expected the values that were saved"):
            ahn.from_pretrained(folder)
    values = json.loads(text.replace('"window": 16', '"window": 17'))
    del values[SUMS]["config.json"]
    (folder / "config.json").write_text(json.dumps(values))
    assert ahn.from_pretrained(folder).config.ahn_config["window"] == 17


def test_sums_are_not_saved_again(tmp_path):
    model = shared_model()
    model.save_pretrained(tmp_path / "one")
    loaded = AutoModelForCausalLM.from_pretrained(tmp_path / "one")
    assert SUMS not in loaded.config.to_dict()
    loaded.config.save_pretrained(tmp_path / "two")
    assert SUMS not in (tmp_path / "two" / "config.json").read_text()
    assert SUMS not in ahn.detach(loaded).config.to_dict()


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_numbers_must_be_finite_after_the_cast(dtype, tmp_path):
    """Of a memory apart, and of one in a folder with its base."""
    model, key = new_model(), "model.layers.1.ahn.fn.o_proj.weight"
    with torch.no_grad():
        dict(model.named_parameters())[key][0, 0, 0] = 3.4e38
    ahn.save_pretrained(model, tmp_path / "memory")
    model.save_pretrained(tmp_path / "merged")
    save_base(tmp_path / "base")
    for arguments in ((tmp_path / "base", tmp_path / "memory"), (tmp_path / "merged",)):
        with pytest.raises(ValueError, match=f"{key}: expected .*{dtype}"):
            ahn.from_pretrained(*arguments, dtype=dtype)
        ahn.from_pretrained(*arguments, dtype=torch.float32)


def test_a_memory_that_is_not_finite_is_not_saved(tmp_path):
    model, key = new_model(), "model.layers.1.ahn.fn.o_proj.weight"
    with torch.no_grad():
        dict(model.named_parameters())[key][0, 0, 0] = float("nan")
    for save in (ahn.save_pretrained, lambda model, folder: model.save_pretrained(folder)):
        with pytest.raises(ValueError, match=f"{key}: expected finite numbers"):
            save(model, tmp_path / "out")
        assert not list((tmp_path / "out").glob("*"))


def test_a_merged_memory_must_be_finite(tmp_path):
    """Also where the file, its checksum and those beside it are right."""
    folder = tmp_path / "merged"
    merge(save_base(tmp_path / "base"), save_memory(tmp_path / "memory"), folder)
    shard = next(x for x in folder.glob("*.safetensors") if any(map(is_memory, load_file(x))))
    state = load_file(shard)
    state[sorted(state)[0]].view(-1)[0] = float("nan")
    write_tensors(shard, state, metadata_of(shard))
    index = json.loads((folder / INDEX).read_text())
    index["metadata"].pop(CHECKSUM)
    (folder / INDEX).write_text(json.dumps(index))
    config = json.loads((folder / "config.json").read_text())
    config.pop(SUMS)
    (folder / "config.json").write_text(json.dumps(config))
    for load in (ahn.from_pretrained, AutoModelForCausalLM.from_pretrained):
        with pytest.raises(ValueError, match=f"{sorted(state)[0]}: expected finite numbers"):
            load(folder)


def test_the_keyword_of_transformers(tmp_path):
    shared_model().save_pretrained(tmp_path)
    cls = type(shared_model())
    assert type(cls.from_pretrained(pretrained_model_name_or_path=tmp_path)) is cls
