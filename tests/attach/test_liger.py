"""Liger-Kernel's modules go in by the family's name, attached or not; what cannot be is refused."""

from __future__ import annotations

import pytest
import torch
import transformers.models.qwen2.modeling_qwen2 as qwen2
import transformers.models.qwen3.modeling_qwen3 as qwen3

import ahn
from ahn.attach.liger import patch_with_liger
from models import assert_close, base_model, new_model, random_ids

GPU, CPU = torch.device("cuda"), torch.device("cpu")


@pytest.fixture(autouse=True)
def _family_as_before():
    """Liger-Kernel changes the family for all models that are made later."""
    before = dict(vars(qwen3))
    yield
    vars(qwen3).update(before)


@pytest.mark.parametrize("make", [base_model, new_model], ids=["base", "attached"])
def test_norms_and_mlps_are_replaced(make):
    pytest.importorskip("liger_kernel")
    model = make("Qwen3")
    patch_with_liger(model, GPU)
    layer = model.get_decoder().layers[0]
    for module in (layer.mlp, layer.input_layernorm, layer.self_attn.q_norm):
        assert "liger_kernel" in module.forward.__func__.__module__, module
    assert "liger_kernel" not in model.forward.__func__.__module__


@pytest.mark.parametrize(
    ("family", "device", "options", "message"),
    [
        ("Qwen2", CPU, None, "liger: expected a GPU, got a CPU"),
        ("Qwen2", GPU, {"norm": True}, "liger: expected some of rope, .* got 'norm'"),
        ("GPT2", GPU, None, "liger: expected a family that Liger-Kernel knows, got 'gpt2'"),
    ],
)
def test_what_cannot_be_patched_is_refused(family, device, options, message):
    pytest.importorskip("liger_kernel")
    model = base_model() if family == "Qwen2" else torch.nn.Module()
    if family != "Qwen2":
        model.config = type("Config", (), {"model_type": family.lower()})
    with pytest.raises(ValueError, match=message):
        patch_with_liger(model, device, options)


def test_a_query_map_of_its_own_survives_rope_in_place(monkeypatch):
    """As a kernel does it: both tensors are overwritten, so they must not share memory."""
    own, ids = qwen2.apply_rotary_pos_emb, random_ids(40)
    model = new_model("Qwen2", use_q_proj=True)
    expected = model(ids).logits

    def in_place(query, key, cos, sin, **options):
        for tensor in (query, key):
            tensor.copy_(own(tensor, tensor, cos, sin, **options)[0])
        return query, key

    monkeypatch.setattr(qwen2, "apply_rotary_pos_emb", in_place)
    with torch.no_grad():
        assert_close(model(ids).logits, expected, 1e-6)
    assert ahn.AHNConfig.from_dict(model.config.ahn_config).use_q_proj
