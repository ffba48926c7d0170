"""The nine released checkpoints: names, shapes and sizes follow from the bases' configs."""

from __future__ import annotations

import pytest
import torch
from transformers import AutoModelForCausalLM, Qwen2Config

import ahn
from tiny_models import SHIPPED

# Public configs of Qwen2.5-{3B,7B,14B}-Instruct.
BASES = {
    "3B": {"hidden_size": 2048, "num_hidden_layers": 36, "num_attention_heads": 16,
           "num_key_value_heads": 2, "intermediate_size": 11008},
    "7B": {"hidden_size": 3584, "num_hidden_layers": 28, "num_attention_heads": 28,
           "num_key_value_heads": 4, "intermediate_size": 18944},
    "14B": {"hidden_size": 5120, "num_hidden_layers": 48, "num_attention_heads": 40,
            "num_key_value_heads": 8, "intermediate_size": 13824},
}  # fmt: skip
MILLIONS = {  # of parameters, as published (arXiv 2510.07318, table of the repository)
    "3B": {"Mamba2": 11.9, "DeltaNet": 11.8, "GatedDeltaNet": 13.0},
    "7B": {"Mamba2": 18.6, "DeltaNet": 18.5, "GatedDeltaNet": 21.3},
    "14B": {"Mamba2": 51.4, "DeltaNet": 51.1, "GatedDeltaNet": 61.0},
}


def released_shapes(cell: str, hidden: int, heads: int, dim: int = 128) -> dict[str, list[int]]:
    """Names and shapes of one layer's tensors in the released files."""
    vector, gate, head_wise = [heads], [heads, hidden], [heads, dim, dim]
    delta = {"b_proj.weight": gate, "g_proj.weight": gate, "o_norm.weight": [dim],
             "o_proj.weight": head_wise}  # fmt: skip
    gated = {"A_log": vector, "D": vector, "dt_bias": vector, "a_proj.weight": gate}
    return {
        "DeltaNet": delta,
        "GatedDeltaNet": {**delta, **gated},
        "Mamba2": {
            "A_log": vector, "dt_bias": vector, "dt_proj.weight": gate, "dt_proj.bias": vector,
            "g_proj.weight": gate, "g_proj.bias": vector, "norm.weight": [heads * dim],
            "o_proj.weight": head_wise,
        },
    }[cell]  # fmt: skip


@pytest.mark.slow
@pytest.mark.parametrize("cell", SHIPPED)
@pytest.mark.parametrize("size", BASES)
def test_names_shapes_and_parameter_counts(size, cell):
    sizes = BASES[size]
    with torch.device("meta"):
        model = AutoModelForCausalLM.from_config(Qwen2Config(vocab_size=64, **sizes))
    ahn.attach(model, ahn.AHNConfig(memory=cell))
    layer = released_shapes(cell, sizes["hidden_size"], sizes["num_attention_heads"])
    expected = {
        f"model.layers.{i}.ahn.fn.{name}": shape
        for i in range(sizes["num_hidden_layers"])
        for name, shape in layer.items()
    }
    found = {k: list(t.shape) for k, t in model.state_dict().items() if ".ahn." in k}
    assert found == expected
    count = sum(torch.Size(shape).numel() for shape in found.values())
    assert abs(count / 1e6 - MILLIONS[size][cell]) <= 0.051
