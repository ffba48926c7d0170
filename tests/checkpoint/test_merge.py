"""Merge and split: the same model in one folder, the same bytes back, whole or not at all."""

from __future__ import annotations

import hashlib
import json
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer

import ahn
from ahn.checkpoint import inspect, merge, split
from ahn.checkpoint.names import FORMATS
from ahn.io.checksum import INDEX
from checkpoint_folders import same_files, save_base, save_memory
from tiny_models import new_model, over_pairs, random_ids, shared_model

IDS = random_ids(60)


@over_pairs
@pytest.mark.parametrize("layout", FORMATS)
@torch.no_grad()
def test_merged_it_is_the_same_model_and_split_the_same_files(family, cell, layout, tmp_path):
    base = save_base(tmp_path / "base", family)
    memory = save_memory(tmp_path / "memory", cell, family, layout)
    merge(base, memory, tmp_path / "merged")
    model = AutoModelForCausalLM.from_pretrained(tmp_path / "merged", dtype=torch.float32)
    assert type(model).__name__ == f"AHN{family}ForCausalLM"
    assert AutoConfig.from_pretrained(tmp_path / "merged").architectures == [type(model).__name__]
    assert torch.equal(model(IDS).logits, shared_model(family, cell)(IDS).logits)
    split(tmp_path / "merged", tmp_path / "split")
    assert same_files(memory, tmp_path / "split")


@torch.no_grad()
def test_shards_keep_their_bytes_and_the_index_names_every_tensor(parts, tmp_path):
    seen = []
    merge(*parts, tmp_path / "merged", progress=lambda *each: seen.append(each))
    values = json.loads((tmp_path / "merged" / INDEX).read_text())
    index, size = values["weight_map"], values["metadata"]["total_size"]
    assert size == sum(p.nbytes for p in shared_model(cell="DeltaNet").state_dict().values())
    copies = sorted((tmp_path / "merged").glob("*.safetensors"))
    sources = [*sorted(parts[0].glob("*.safetensors")), parts[1] / "ahn_model.safetensors"]
    assert [x.read_bytes() for x in copies] == [x.read_bytes() for x in sources]
    assert index == {key: path.name for path in copies for key in load_file(path)}
    assert seen[-1][1] == seen[-1][2] == sum(path.stat().st_size for path in copies)
    model = AutoModelForCausalLM.from_pretrained(tmp_path / "merged", dtype=torch.float32)
    assert torch.equal(model(IDS).logits, shared_model(cell="DeltaNet")(IDS).logits)


def test_tokenizer_generation_config_and_chat_template_come_along(parts, tmp_path):
    (parts[0] / "generation_config.json").write_text('{"max_new_tokens": 3}')
    (parts[0] / "LICENSE").write_text("as it is")
    (parts[0] / "pytorch_model.bin").write_text("not this")
    merge(*parts, tmp_path / "merged")
    names = {path.name for path in (tmp_path / "merged").iterdir()}
    assert {"LICENSE", "generation_config.json"} < names and "pytorch_model.bin" not in names
    model = AutoModelForCausalLM.from_pretrained(tmp_path / "merged")
    assert model.generation_config.max_new_tokens == 3
    tokenizer = AutoTokenizer.from_pretrained(tmp_path / "merged")
    assert tokenizer.apply_chat_template([{"role": "user", "content": "x"}], tokenize=False) == "x"


WITHOUT_IMPORT = """
import sys, torch
from transformers import AutoModelForCausalLM
assert "ahn" not in sys.modules
model = AutoModelForCausalLM.from_pretrained(sys.argv[1], trust_remote_code=True)
print(type(model).__name__, model(torch.arange(2, 62)[None]).logits.double().sum().item())
model.save_pretrained(sys.argv[2])
"""


@pytest.mark.slow
@torch.no_grad()
def test_it_loads_with_trust_remote_code_where_the_package_is_not_imported(parts, tmp_path):
    merge(*parts, tmp_path / "merged")
    environment = {"HF_HOME": str(tmp_path / "home"), "PYTHONPATH": ":".join(sys.path)}
    folders = (tmp_path / "merged", tmp_path / "saved")
    result = subprocess.run(
        [sys.executable, "-c", WITHOUT_IMPORT, *map(str, folders)],
        capture_output=True, text=True, env=environment,
    )  # fmt: skip
    assert result.returncode == 0, result.stderr
    name, total = result.stdout.split()
    expected = shared_model(cell="DeltaNet")(torch.arange(2, 62)[None]).logits.double().sum()
    assert name == "AHNQwen2ForCausalLM" and float(total) == expected.item()
    module = "modeling_ahn.py"
    assert (folders[0] / module).read_bytes() == (folders[1] / module).read_bytes()
    assert not list(folders[1].glob("families*"))


def test_window_and_sinks_given_win_and_stay(parts, tmp_path):
    merge(*parts, tmp_path / "merged", window=7, num_sinks=1)
    settings = AutoConfig.from_pretrained(tmp_path / "merged").ahn_config
    assert (settings["window"], settings["num_sinks"]) == (7, 1)
    split(tmp_path / "merged", tmp_path / "split")
    again = json.loads((tmp_path / "split" / "ahn_config.json").read_text())["ahn_config"]
    assert again == settings


def test_what_an_attached_model_saves_splits_too(tmp_path):
    model = new_model("Llama", "Mamba2", use_router=True, full_attention_layers=(0,))
    model.save_pretrained(tmp_path / "merged", max_shard_size="40KB")
    for layout in FORMATS:
        split(tmp_path / "merged", tmp_path / layout, format=layout)
        base = save_base(tmp_path / "base", "Llama")
        loaded = ahn.from_pretrained(base, tmp_path / layout, dtype=torch.float32)
        assert torch.equal(loaded(IDS).logits, model(IDS).logits)


def test_what_the_original_code_merged_splits_too(tmp_path):
    memory = save_memory(tmp_path / "memory", format="released")
    merged = save_base(tmp_path / "merged")
    weights = load_file(merged / "model.safetensors") | load_file(memory / "model.safetensors")
    save_file(weights, merged / "model.safetensors", metadata={"format": "pt"})
    shutil.copyfile(memory / "config.json", merged / "config.json")
    split(merged, tmp_path / "split", format="released")
    weights = "model.safetensors"
    assert (tmp_path / "split" / weights).read_bytes() == (memory / weights).read_bytes()


PEAK = """
import resource, sys
from ahn.checkpoint import merge
def peak(): return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
merge(*sys.argv[1:3], sys.argv[3])
before = peak()
merge(*sys.argv[4:6], sys.argv[6])
print(peak() - before)
"""


@pytest.mark.slow
def test_peak_memory_does_not_grow_with_the_base(parts, tmp_path):
    wide = {"vocab_size": 400_000}
    model = new_model(cell="DeltaNet", overrides=tuple(wide.items()))
    ahn.save_pretrained(model, tmp_path / "m")
    ahn.detach(model).save_pretrained(tmp_path / "big", max_shard_size="30MB")
    size = sum(path.stat().st_size for path in (tmp_path / "big").glob("*.safetensors"))
    arguments = [*parts, tmp_path / "out", tmp_path / "big", tmp_path / "m", tmp_path / "out2"]
    result = subprocess.run(
        [sys.executable, "-c", PEAK, *map(str, arguments)], capture_output=True, text=True,
        env={"PYTHONPATH": ":".join(sys.path)},
    )  # fmt: skip
    assert result.returncode == 0, result.stderr
    assert size > 200e6 and int(result.stdout.split()[-1]) * 1024 < 60e6
    assert Path(tmp_path / "out2").is_dir()


def test_every_shard_has_its_checksum_in_the_index(parts, tmp_path):
    merge(*parts, tmp_path / "merged")
    sums = json.loads((tmp_path / "merged" / INDEX).read_text())["metadata"]["sha256"]
    shards = (tmp_path / "merged").glob("*.safetensors")
    assert sums == {path.name: hashlib.sha256(path.read_bytes()).hexdigest() for path in shards}


@pytest.mark.parametrize("size", ["40KB", "1GB"])
def test_saved_over_a_merged_folder_an_old_checksum_refuses_nothing(parts, tmp_path, size):
    merged = tmp_path / "merged"
    merge(*parts, merged)
    model = AutoModelForCausalLM.from_pretrained(merged)
    with torch.no_grad():
        model.lm_head.weight.add_(1)
    model.save_pretrained(merged, max_shard_size=size)
    again = AutoModelForCausalLM.from_pretrained(merged)
    assert torch.equal(again.lm_head.weight, model.lm_head.weight)
    split(merged, tmp_path / "split")


def test_a_damaged_base_shard_is_named_and_the_memory_can_still_be_saved(parts, tmp_path):
    merged = tmp_path / "merged"
    merge(*parts, merged)
    shard = sorted(merged.glob("*.safetensors"))[0]
    data = bytearray(shard.read_bytes())
    data[-7] ^= 1
    shard.write_bytes(data)
    for read in (ahn.from_pretrained, lambda path: inspect(path, verify=True)):
        with pytest.raises(ValueError, match=f"{shard.name}: expected the bytes that were written"):
            read(merged)
    split(merged, tmp_path / "split")
    assert same_files(parts[1], tmp_path / "split")
