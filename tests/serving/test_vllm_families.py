"""Each family that vLLM serves, and several processes; see `.ci/vllm`."""

from __future__ import annotations

import pytest

pytest.importorskip("vllm")

from vllm_engines import (
    TOLERANCE,
    answers,
    embedded_folder,
    engine,
    largest_difference,
    memory_moves,
    prompts,
    tiny_folder,
)

EXPERTS = {"num_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 32}
MODELS = {  # family: cell and what its base needs
    "Qwen2": ("GatedDeltaNet", {}),
    "Llama": ("DeltaNet", {}),
    "Mistral": ("Mamba2", {"sliding_window": 64}),  # all layers slide: the memory's takes its place
    "Qwen3Moe": ("GatedDeltaNet", {**EXPERTS, "num_hidden_layers": 3}),
}
SMALL = {"max_model_len": 1024, "max_num_batched_tokens": 64}


def small(lengths):
    return [[token % 500 + 2 for token in prompt] for prompt in prompts(lengths)]


@pytest.mark.parametrize("family", MODELS)
def test_families(tmp_path, family):
    cell, options = MODELS[family]
    folder, asked = tiny_folder(tmp_path / "model", family, cell, **options), small([30, 130, 460])
    with engine(folder, **SMALL) as llm:
        got = answers(llm, asked)
    assert largest_difference(folder, asked, got) < TOLERANCE
    assert memory_moves(folder, asked[-1], got[-1][0]) > 100 * TOLERANCE


def test_a_layer_left_with_full_attention(tmp_path):
    settings = {"full_attention_layers": (3,)}
    folder, asked = (
        embedded_folder(tmp_path / "model", "DeltaNet", **settings),
        prompts([130, 1300]),
    )
    with engine(folder) as llm:
        got = answers(llm, asked)
    assert largest_difference(folder, asked, got) < TOLERANCE


@pytest.mark.timeout(900)
@pytest.mark.parametrize(
    ("cell", "parallel"),
    [
        ("GatedDeltaNet", "tensor"),  # it norms each head
        ("Mamba2", "tensor"),  # it norms all heads at once
        ("GatedDeltaNet", "pipeline"),
    ],
)
def test_two_processes(tmp_path, monkeypatch, cell, parallel):
    monkeypatch.setenv("VLLM_CPU_OMP_THREADS_BIND", "0|1")
    folder, asked = embedded_folder(tmp_path / "model", cell), prompts([130, 700])
    options = {f"{parallel}_parallel_size": 2}
    if parallel == "pipeline":  # vLLM's runner for a CPU passes nothing on unless it compiles
        options |= {"enforce_eager": False, "compilation_config": {"backend": "eager"}}
    with engine(folder, **options) as llm:
        got = answers(llm, asked)
    assert largest_difference(folder, asked, got) < TOLERANCE
