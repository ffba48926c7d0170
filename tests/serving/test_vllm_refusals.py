"""What vLLM cannot serve is refused by name before its engine starts; see `.ci/vllm`."""

from __future__ import annotations

import json
import sys

import pytest

pytest.importorskip("vllm")

from vllm_engines import embedded_folder, engine

from ahn.checkpoint import merge
from ahn.serving import servers
from ahn.serving.vllm import register


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return embedded_folder(tmp_path_factory.mktemp("folders") / "model", "DeltaNet")


def refused(folder, message, **options):
    with pytest.raises(ValueError, match=message), engine(folder, **options):
        pass


@pytest.mark.parametrize("setting", ["use_q_proj", "use_router"])
def test_parts_of_a_memory(tmp_path, setting):
    folder = embedded_folder(tmp_path / "model", "DeltaNet", **{setting: True})
    refused(folder, f"{setting}: expected false in vLLM, got true")


def test_slots(tmp_path):
    merge("embedded", "Slots", tmp_path / "model")
    refused(tmp_path / "model", "slots: expected 0 in vLLM, got 768")


def test_another_version(folder, monkeypatch):
    untried = "vllm 0.20.0 (tested: <0.33,>=0.32)"
    monkeypatch.setattr(servers, "untried_versions", lambda name: [untried])
    refused(folder, "vllm: expected a version that was tested, got vllm 0.20.0")


def test_a_version_without_what_the_plug_in_needs_serves_its_other_models(monkeypatch):
    monkeypatch.setitem(sys.modules, "vllm.model_executor.models.config", None)
    with pytest.warns(UserWarning, match="ahn: expected a tested vLLM for models with a memory"):
        register()


def test_speculation(folder):
    speculation = {"method": "ngram", "num_speculative_tokens": 2, "prompt_lookup_max": 2}
    refused(folder, "speculative_config: expected none", speculative_config=speculation)


def test_what_was_not_compared(folder):
    """`quantization` of weights, a cache that lies elsewhere, and a CPU has no sleep."""
    refused(folder, "quantization: expected None beside a memory", quantization="fp8")
    elsewhere = {"kv_connector": "ExampleConnector", "kv_role": "kv_both"}
    refused(folder, "kv_transfer_config: expected None", kv_transfer_config=elsewhere)
    refused(folder, "[Ss]leep", enable_sleep_mode=True)


def test_a_cache_of_eight_bits(folder):
    refused(folder, "kv_cache_dtype: expected auto beside a memory, got fp8", kv_cache_dtype="fp8")


@pytest.mark.parametrize("blocks", [1, 3])
def test_too_few_blocks_for_one_request(folder, blocks):
    refused(folder, "cache", num_gpu_blocks_override=blocks)


def test_a_damaged_memory(tmp_path, folder):
    copy = tmp_path / "model"
    copy.mkdir()
    for file in folder.iterdir():
        (copy / file.name).write_bytes(file.read_bytes())
    index = json.loads((copy / "model.safetensors.index.json").read_text())
    weights = copy / index["weight_map"]["model.layers.0.ahn.fn.o_proj.weight"]
    data = bytearray(weights.read_bytes())
    data[-1] ^= 1
    weights.write_bytes(data)
    refused(copy, "expected the bytes that were written, got damaged ones")
