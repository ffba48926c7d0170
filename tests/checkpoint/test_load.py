"""`from_pretrained`: both layouts, every family, strict about what goes with what."""

from __future__ import annotations

import json

import pytest
import torch
from safetensors.torch import load_file, save_file

import ahn
from ahn.checkpoint.names import FORMATS
from checkpoint_folders import same_files, save_base, save_memory
from tiny_models import new_model, over_pairs, random_ids, shared_model

IDS = random_ids(60)


@pytest.fixture(scope="module")
def base(tmp_path_factory):
    return save_base(tmp_path_factory.mktemp("base"))


@over_pairs
@pytest.mark.parametrize("layout", FORMATS)
@torch.no_grad()
def test_base_and_memory_load_as_they_were_saved(family, cell, layout, tmp_path):
    save_base(tmp_path / "base", family)
    save_memory(tmp_path / "memory", cell, family, layout)
    model = ahn.from_pretrained(tmp_path / "base", tmp_path / "memory", dtype=torch.float32)
    assert not model.training
    assert type(model).__name__ == f"AHN{family}ForCausalLM"
    assert torch.equal(model(IDS).logits, shared_model(family, cell)(IDS).logits)
    ahn.save_pretrained(model, tmp_path / "again", format=layout)
    twice = ahn.from_pretrained(tmp_path / "base", tmp_path / "again", dtype=torch.float32)
    ahn.save_pretrained(twice, tmp_path / "twice", format=layout)
    assert same_files(tmp_path / "again", tmp_path / "twice")
    weights = [next((tmp_path / name).glob("*.safetensors")) for name in ("memory", "again")]
    assert weights[0].read_bytes() == weights[1].read_bytes()


def test_every_setting_travels_in_both_layouts(tmp_path):
    settings = {"use_q_proj": True, "use_router": True, "full_attention_layers": (1,)}
    model = new_model("Qwen3", "GatedDeltaNet", window=9, num_sinks=3, **settings)
    save_base(tmp_path / "base", "Qwen3")
    for layout in FORMATS:
        ahn.save_pretrained(model, tmp_path / layout, format=layout)
        loaded = ahn.from_pretrained(tmp_path / "base", tmp_path / layout)
        assert loaded.config.ahn_config == model.config.ahn_config


def test_the_released_layout_has_the_released_names(tmp_path):
    save_memory(tmp_path, "Mamba2", format="released")
    values = json.loads((tmp_path / "config.json").read_text())
    assert values["model_type"] == "qwen2"
    assert values["_ahn_implementation"] == "Mamba2"
    assert (values["sliding_window"], values["num_attn_sinks"]) == (16, 4)
    assert (values["fa_layer_ids"], values["use_q_proj"], values["use_ahn_router"]) == (
        "", False, False)  # fmt: skip
    assert all(".ahn.fn." in key for key in load_file(tmp_path / "model.safetensors"))


@pytest.mark.parametrize(
    ("text", "layers"), [("", []), ("1", [1]), (" 0, 1 ", [0, 1]), ([1], [1]), (None, [])], ids=str
)
def test_released_layer_indices_may_be_text(text, layers, tmp_path):
    from ahn.checkpoint.settings import from_legacy

    settings = from_legacy({"_ahn_implementation": "DeltaNet", "fa_layer_ids": text})
    assert list(settings.full_attention_layers) == layers
    assert (settings.window, settings.num_sinks) == (32640, 128)  # the paper's, where none is given


def test_window_and_sinks_given_win_over_either_file(base, tmp_path):
    for layout in FORMATS:
        save_memory(tmp_path / layout, format=layout)
        model = ahn.from_pretrained(base, tmp_path / layout, window=7, num_sinks=0)
        settings = model.config.ahn_config
        assert (settings["window"], settings["num_sinks"]) == (7, 0)


def test_a_memory_of_another_base_is_refused(tmp_path):
    other = new_model("Qwen2", "DeltaNet", overrides=(("num_hidden_layers", 3),))
    other.save_pretrained(tmp_path / "other")
    for layout in FORMATS:
        ahn.save_pretrained(other, tmp_path / layout, format=layout)
        with pytest.raises(ValueError, match="num_hidden_layers=3, got 2"):
            ahn.from_pretrained(save_base(tmp_path / "base"), tmp_path / layout)


def test_a_memory_of_another_family_is_refused(base, tmp_path):
    save_memory(tmp_path, family="Llama")
    with pytest.raises(ValueError, match="model_type=llama, got qwen2"):
        ahn.from_pretrained(base, tmp_path)


@torch.no_grad()
def test_a_folder_merged_by_the_original_code_loads_with_its_memory(tmp_path):
    save_base(tmp_path)
    save_memory(tmp_path / "memory", format="released")
    memory = load_file(tmp_path / "memory" / "model.safetensors")
    weights = {**load_file(tmp_path / "model.safetensors"), **memory}
    save_file(weights, tmp_path / "model.safetensors", metadata={"format": "pt"})
    (tmp_path / "memory" / "config.json").replace(tmp_path / "config.json")
    model = ahn.from_pretrained(tmp_path, dtype=torch.float32)
    assert torch.equal(model(IDS).logits, shared_model("Qwen2", "DeltaNet")(IDS).logits)
    assert ahn.from_pretrained(tmp_path, window=5).config.ahn_config["window"] == 5


def test_a_plain_base_has_no_window(base):
    assert type(ahn.from_pretrained(base)).__name__ == "Qwen2ForCausalLM"
    with pytest.raises(ValueError, match="num_sinks: expected a memory"):
        ahn.from_pretrained(base, num_sinks=2)


def test_a_merged_base_needs_no_memory_and_takes_no_other(tmp_path):
    shared_model().save_pretrained(tmp_path)
    model = ahn.from_pretrained(tmp_path, window=5)
    assert model.config.ahn_config["window"] == 5
    with pytest.raises(ValueError, match="without a memory"):
        ahn.from_pretrained(tmp_path, save_memory(tmp_path / "memory", "GatedDeltaNet"))


def test_a_merged_base_runs_by_the_kernels_asked_for(tmp_path):
    shared_model().save_pretrained(tmp_path)
    for window in (None, 5):
        model = ahn.from_pretrained(tmp_path, window=window, kernels="torch")
        chosen = {m.kernels for m in model.modules() if isinstance(m, ahn.memory.Memory)}
        assert chosen == {"torch"}
    with pytest.raises(ValueError, match="kernels: expected one of"):
        ahn.from_pretrained(tmp_path, kernels="abacus")


def test_only_a_base_without_a_memory_gets_a_new_one(base, tmp_path):
    new = ahn.AHNConfig(memory="Mamba2", window=16, num_sinks=4)
    model = ahn.from_pretrained(base, new_memory=new, window=7)
    assert not model.training
    assert model.config.ahn_config == new.with_budget(7).to_dict()
    save_memory(tmp_path / "memory")
    with_memory = ahn.from_pretrained(base, tmp_path / "memory", new_memory=new)
    shared_model("Qwen2", "DeltaNet").save_pretrained(tmp_path / "merged")
    for other in (with_memory, ahn.from_pretrained(tmp_path / "merged", new_memory=new)):
        assert other.config.ahn_config["memory"] == "DeltaNet"
    with pytest.raises(ValueError, match="Elman"):
        ahn.from_pretrained(base, new_memory=ahn.AHNConfig(memory="Elman"))


def test_half_precision_and_device_map(base, tmp_path):
    save_memory(tmp_path)
    model = ahn.from_pretrained(base, tmp_path, dtype=torch.bfloat16, device_map="cpu")
    assert {p.dtype for p in model.parameters()} == {torch.bfloat16}


@pytest.mark.parametrize("name", ["no/such/folder/at/all", "a b", "Elman"])
def test_what_is_neither_folder_nor_hub_name_is_said_so(base, name):
    with pytest.raises(ValueError, match="expected a folder or a name on the hub"):
        ahn.from_pretrained(base, name)
