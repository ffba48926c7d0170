"""Other people's tools on an attached or merged model: PEFT, quantisation, lm-eval."""

from __future__ import annotations

import json
import os
import subprocess
import sys

import pytest
import torch

import ahn
from ahn.checkpoint import merge
from checkpoint_folders import save_base, save_memory
from tiny_models import base_model, memory_parameters, new_model, random_ids

IDS = random_ids(60)


@pytest.fixture
def parts(tmp_path):
    return save_base(tmp_path / "base"), save_memory(tmp_path / "memory", "GatedDeltaNet")


def test_lora_on_top_of_an_attached_model():
    peft = pytest.importorskip("peft")
    model = new_model()
    before = model(IDS).logits.detach()
    config = peft.LoraConfig(target_modules=["q_proj", "v_proj"], exclude_modules=r".*\.ahn\..*")
    adapted = peft.get_peft_model(model, config)
    assert torch.equal(adapted(IDS).logits, before)  # LoRA starts as nothing
    adapted(input_ids=IDS, labels=IDS).loss.backward()
    trained = {name for name, p in adapted.named_parameters() if p.grad is not None}
    assert trained and all("lora_" in name for name in trained)
    with torch.no_grad():
        for name, parameter in adapted.named_parameters():
            if "lora_B" in name:
                parameter.normal_(std=0.1)
    assert not torch.equal(adapted(IDS).logits, before)
    new = adapted.generate(input_ids=IDS, max_new_tokens=5, do_sample=False)
    assert new.shape == (1, 65)


@pytest.mark.parametrize("family", ["Qwen2", "Llama", "Mistral"])
def test_pefts_default_targets_are_those_of_the_base(family):
    peft = pytest.importorskip("peft")
    targets = [
        peft.get_peft_model(model, peft.LoraConfig(task_type="CAUSAL_LM"))
        .peft_config["default"]
        .target_modules
        for model in (base_model(family), new_model(family))
    ]
    assert targets[0] == targets[1] != set()


def test_lora_of_the_head_wise_map_is_refused_by_name():
    peft = pytest.importorskip("peft")
    with pytest.raises(ValueError, match="HeadwiseLinear"):
        peft.get_peft_model(new_model(), peft.LoraConfig(target_modules=["o_proj"]))


def test_an_int8_base_by_torchao(parts):
    pytest.importorskip("torchao")
    from torchao.quantization import Int8WeightOnlyConfig
    from transformers import TorchAoConfig

    quantized = TorchAoConfig(Int8WeightOnlyConfig())
    model = ahn.from_pretrained(*parts, dtype=torch.float32, quantization_config=quantized)
    exact = ahn.from_pretrained(*parts, dtype=torch.float32)
    kinds = {type(layer.self_attn.q_proj.weight).__name__ for layer in model.model.layers}
    assert kinds == {"Int8Tensor"} or "Affine" in kinds.pop()
    own, expected = memory_parameters(model), memory_parameters(exact)
    assert all(torch.equal(own[name], value) for name, value in expected.items())
    with torch.no_grad():
        difference = (model(IDS).logits - exact(IDS).logits).abs().max()
        assert 0 < difference < 0.5 * exact(IDS).logits.std()
        new = model.generate(IDS, max_new_tokens=5, do_sample=False)
    assert new.shape == (1, 65)


@pytest.mark.slow
def test_lm_eval_runs_on_a_merged_folder(tmp_path):
    pytest.importorskip("lm_eval")
    merge("embedded", "DeltaNet", tmp_path / "merged", window=64)
    data = [{"text": "def first(values):\n    return values[0]\n" * 3} for _ in range(4)]
    (tmp_path / "data.json").write_text(json.dumps(data))
    (tmp_path / "tasks").mkdir()
    (tmp_path / "tasks" / "local.yaml").write_text(
        "task: local_text\ndataset_path: json\ndataset_kwargs:\n  data_files:\n"
        f"    test: {tmp_path / 'data.json'}\noutput_type: loglikelihood_rolling\n"
        'test_split: test\ndoc_to_text: ""\ndoc_to_target: "{{text}}"\n'
        "metric_list:\n  - metric: bits_per_byte\n"
    )
    arguments = f"pretrained={tmp_path / 'merged'},trust_remote_code=True,max_length=150"
    result = subprocess.run(
        [sys.executable, "-m", "lm_eval", "--model", "hf", "--model_args", arguments,
         "--tasks", "local_text", "--include_path", str(tmp_path / "tasks"), "--device", "cpu",
         "--batch_size", "1", "--output_path", str(tmp_path / "out")],
        capture_output=True, text=True,
        env={**os.environ, "HF_HOME": str(tmp_path / "home"), "HF_HUB_OFFLINE": "1"},
    )  # fmt: skip
    assert result.returncode == 0, result.stderr[-2000:]
    report = json.loads(next((tmp_path / "out").rglob("results_*.json")).read_text())
    assert 0 < report["results"]["local_text"]["bits_per_byte,none"] < 30
