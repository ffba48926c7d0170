"""The model with its memory is saved and loaded by transformers' own functions."""

from __future__ import annotations

import json

import pytest
import torch
from transformers import AutoConfig, AutoModelForCausalLM

import ahn
from ahn.hf.attached_state import attached_state
from tiny_models import (
    assert_close,
    memory_parameters,
    new_model,
    one_shot,
    over_matrix,
    over_pairs,
    random_ids,
    shared_base,
    shared_model,
)

FULL = {"use_q_proj": True, "use_router": True, "full_attention_layers": (1,)}


def contents(folder):
    return {path.name: path.read_bytes() for path in sorted(folder.iterdir())}


@over_matrix
@torch.no_grad()
def test_saved_and_loaded_by_the_auto_classes(family, cell, tmp_path):
    model, ids = shared_model(family, cell, **FULL), random_ids(60)
    model.save_pretrained(tmp_path / "first")
    loaded, report = AutoModelForCausalLM.from_pretrained(
        tmp_path / "first", output_loading_info=True
    )
    assert not any(report[kind] for kind in ("missing_keys", "unexpected_keys", "mismatched_keys"))
    assert type(loaded) is type(model)
    assert torch.equal(one_shot(loaded.eval(), ids), one_shot(model, ids))
    loaded.save_pretrained(tmp_path / "second")
    assert contents(tmp_path / "second") == contents(tmp_path / "first")


@torch.no_grad()
def test_config_json(tmp_path):
    model = shared_model("Qwen3", **FULL)
    model.save_pretrained(tmp_path)
    saved = json.loads((tmp_path / "config.json").read_text())
    assert saved["model_type"] == "ahn_qwen3"
    assert saved["architectures"] == ["AHNQwen3ForCausalLM"]
    assert ahn.AHNConfig.from_dict(saved["ahn_config"]).window == model.config.ahn_config["window"]
    assert not {"ahn_backend", "_attn_implementation", "attn_implementation"} & set(saved)
    config = AutoConfig.from_pretrained(tmp_path)
    assert type(config) is type(model.config)
    assert ahn.AHNCache(config).memory_layers


@over_pairs
@torch.no_grad()
def test_a_loaded_model_is_detached_to_its_family(family, cell, tmp_path):
    base, ids = shared_base(family), random_ids(60)
    shared_model(family, cell).save_pretrained(tmp_path)
    model = ahn.detach(AutoModelForCausalLM.from_pretrained(tmp_path)).eval()
    assert type(model) is type(base)
    assert type(model.config) is type(base.config)
    assert list(model.state_dict()) == list(base.state_dict())
    assert torch.equal(one_shot(model, ids), one_shot(base, ids))
    assert torch.equal(model.generate(ids, max_new_tokens=3), base.generate(ids, max_new_tokens=3))
    ahn.attach(model, ahn.AHNConfig(window=16, num_sinks=4))
    model.save_pretrained(tmp_path / "again")
    ahn.detach(model).save_pretrained(tmp_path / "base")
    saved = json.loads((tmp_path / "base" / "config.json").read_text())
    base.save_pretrained(tmp_path / "original")
    assert saved == json.loads((tmp_path / "original" / "config.json").read_text())


@pytest.mark.parametrize("backend", ["eager", "sdpa"])
@torch.no_grad()
def test_the_backend_is_chosen_when_loading(backend, tmp_path):
    new_model().save_pretrained(tmp_path)
    model = AutoModelForCausalLM.from_pretrained(tmp_path, attn_implementation=backend).eval()
    assert model.config._attn_implementation == "ahn"
    if backend == "eager":
        assert len(model(random_ids(9), output_attentions=True).attentions) == 2
    else:
        with pytest.warns(UserWarning, match=f"output_attentions: '{backend}' gives no attention"):
            assert not model(random_ids(9), output_attentions=True).attentions
    assert_close(one_shot(model, random_ids(60)), one_shot(shared_model(), random_ids(60)), 1e-6)


@torch.no_grad()
def test_dtype_and_shards(tmp_path):
    model = shared_model("Llama", "Mamba2")
    model.save_pretrained(tmp_path, max_shard_size="100KB")
    assert len(list(tmp_path.glob("*.safetensors"))) > 2
    loaded = AutoModelForCausalLM.from_pretrained(tmp_path, dtype=torch.bfloat16).eval()
    assert {x.dtype for x in loaded.parameters()} == {torch.bfloat16}
    rounding = (one_shot(loaded, random_ids(60)).float() - one_shot(model, random_ids(60))).abs()
    assert rounding.mean() < 0.1


def test_a_class_of_a_family_starts_with_initialised_silent_cells(tmp_path):
    """As loading a base under an attached config does: what is missing is initialised."""
    for family, cell in (("Qwen2", "GatedDeltaNet"), ("Llama", "Mamba2")):
        shared_base(family).save_pretrained(tmp_path / family)
        config = shared_model(family, cell).config
        model = (
            type(shared_model(family, cell))
            .from_pretrained(tmp_path / family, config=config)
            .eval()
        )
        for name, parameter in memory_parameters(model).items():
            assert parameter.isfinite().all(), name
            assert bool(parameter.any()) == ("o_proj" not in name and ".bias" not in name), name
        with torch.no_grad(), ahn.memory_off(shared_model(family, cell)) as reference:
            expected = one_shot(reference, random_ids(60))
            assert torch.equal(one_shot(model, random_ids(60)), expected)


def test_an_attached_class_needs_its_settings():
    model_class, config_class = type(shared_model()), type(shared_model().config)
    with pytest.raises(ValueError, match="ahn_config: expected the memory's settings"):
        model_class(config_class(num_hidden_layers=1))


def test_kernels_of_a_merged_folder_govern_the_whole_model(tmp_path):
    new_model().save_pretrained(tmp_path)
    model = ahn.from_pretrained(tmp_path, kernels="torch")
    assert attached_state(model).kernels == "torch"
    assert {layer.ahn.fn.kernels for layer in model.model.layers} == {"torch"}
    with pytest.raises(ValueError, match="kernels: expected one of"):
        ahn.from_pretrained(tmp_path, kernels="cutlass")
