"""The hub: memories come with resume, and go with a card."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import huggingface_hub
import pytest
from huggingface_hub.constants import DOWNLOAD_CHUNK_SIZE

import ahn
from ahn.checkpoint import merge, push_to_hub
from ahn.checkpoint.card import model_card
from ahn.checkpoint.names import FORMATS
from checkpoint_folders import same_files, save_base, save_memory
from hub_server import COMMIT, serve
from tiny_models import new_model, shared_base, shared_model

LOAD = """
import sys, ahn, torch
base, name = sys.argv[1:3]
model = ahn.from_pretrained(base, name, memory_revision="main", dtype=torch.float32)
print(model.config.ahn_config["memory"], model(torch.arange(2, 62)[None]).logits.sum().item())
"""


LOAD_MERGED = """
import sys, ahn
model = ahn.from_pretrained(sys.argv[2])
print(type(model).__name__, model.config.ahn_config["memory"])
"""


def load_from(hub, base, home, program=LOAD, **environment):
    """Load in a process of its own, whose hub is the stand-in."""
    code = [sys.executable, "-c", program, str(base), hub.name]
    variables = {
        **{k: v for k, v in os.environ.items() if not k.startswith("HF_")},
        "PYTHONPATH": ":".join(sys.path),
        "HF_ENDPOINT": hub.address,
        "HF_HOME": str(home),
        **environment,
    }
    return subprocess.run(code, capture_output=True, text=True, env=variables)


@pytest.mark.slow
def test_a_broken_download_goes_on_where_it_stopped(tmp_path):
    wide = {"num_attention_heads": 64, "head_dim": 128, "num_hidden_layers": 4}
    model = new_model("Qwen3", "DeltaNet", overrides=tuple(wide.items()))
    base, memory = tmp_path / "base", tmp_path / "memory"
    ahn.save_pretrained(model, memory)
    ahn.detach(model).save_pretrained(base)
    with serve("someone/memory", memory) as hub:
        hub.break_after = DOWNLOAD_CHUNK_SIZE + 1000
        result = load_from(hub, base, tmp_path / "home")
        assert result.returncode == 0, result.stderr
        assert "DeltaNet" in result.stdout
        ranges = [wanted for _, path, wanted in hub.requests if path.endswith(".safetensors")]
        assert f"bytes={DOWNLOAD_CHUNK_SIZE}-" in ranges
        snapshot = next((tmp_path / "home").rglob(COMMIT))
        assert same_files(snapshot, memory)
        hub.requests.clear()
        offline = load_from(hub, base, tmp_path / "home", HF_HUB_OFFLINE="1")
        assert offline.stdout == result.stdout and not hub.requests


@pytest.mark.slow
def test_a_released_memory_damaged_in_the_cache_is_seen(tmp_path):
    base = save_base(tmp_path / "base")
    with serve("someone/memory", save_memory(tmp_path / "memory", format="released")) as hub:
        assert load_from(hub, base, tmp_path / "home").returncode == 0
        blob = next((tmp_path / "home").rglob("model.safetensors")).resolve()
        flip_last(blob)
        result = load_from(hub, base, tmp_path / "home", HF_HUB_OFFLINE="1")
    assert "model.safetensors: expected the bytes that were written" in result.stderr


@pytest.mark.slow
@pytest.mark.parametrize("upload", ["damaged", "whole"])
def test_a_merged_model_of_the_hub_is_checked_where_it_is_local(tmp_path, upload):
    merged = tmp_path / "merged"
    merge(save_base(tmp_path / "base"), save_memory(tmp_path / "memory"), merged)
    shard = sorted(merged.glob("*.safetensors"))[0]
    if upload == "damaged":  # before it reached the hub, whose own checksum is of what it got
        flip_last(shard)
    with serve("someone/merged", merged) as hub:
        result = load_from(hub, merged, tmp_path / "home", LOAD_MERGED)
    if upload == "whole":
        assert result.stdout.split() == ["AHNQwen2ForCausalLM", "DeltaNet"], result.stderr
        flip_last(next((tmp_path / "home").rglob(shard.name)).resolve())
        result = load_from(hub, merged, tmp_path / "home", LOAD_MERGED, HF_HUB_OFFLINE="1")
    assert not result.stdout
    assert f"{shard.name}: expected the bytes that were written" in result.stderr


def flip_last(path):
    """Change a bit of a number, which stays finite."""
    data = bytearray(path.read_bytes())
    data[-7] ^= 1
    path.write_bytes(data)


@pytest.mark.slow
def test_a_name_that_the_hub_does_not_have_is_one_line(tmp_path):
    with serve("someone/memory", save_memory(tmp_path / "memory")) as hub:
        hub.name = "someone/other"
        base = save_base(tmp_path / "base")
        result = load_from(hub, base, tmp_path / "home", HF_HUB_OFFLINE="1")
    assert "memory: expected a folder or a name on the hub, got 'someone/other'" in result.stderr


@pytest.mark.slow
def test_a_hub_out_of_reach_is_one_line_without_retries(tmp_path):
    with serve("someone/merged", tmp_path) as hub:
        pass  # nothing listens there any more
    result = load_from(hub, tmp_path, tmp_path / "home", LOAD_MERGED)
    last = result.stderr.splitlines()[-1]
    assert "base: expected a folder or a name on the hub, got 'someone/merged'" in last
    assert "Retrying" not in result.stderr


@pytest.mark.parametrize("layout", FORMATS)
def test_pushing_uploads_the_folder_and_its_card_as_one_commit(layout, tmp_path, monkeypatch):
    calls = []

    class Api:
        def __init__(self, token=None):
            calls.append(("token", token))

        def create_repo(self, repo, **options):
            calls.append(("create", repo, options))

        def upload_folder(self, *, folder_path, **options):
            files = {p.name: p.read_bytes() for p in Path(folder_path).iterdir()}
            calls.append(("upload", options, files))
            return "https://hub/commit/1"

    monkeypatch.setattr(huggingface_hub, "HfApi", Api)
    model = shared_model(cell="DeltaNet")
    address = push_to_hub(
        model, "me/mine", format=layout, training={"steps": 3}, private=True, token="t"
    )
    assert address == "https://hub/commit/1"
    assert calls[0] == ("token", "t")
    assert calls[1] == ("create", "me/mine", {"private": True, "exist_ok": True})
    options, files = calls[2][1:]
    assert options["repo_id"] == "me/mine" and options["commit_message"]
    ahn.save_pretrained(model, tmp_path, format=layout)
    card = files.pop("README.md").decode()
    assert files == {path.name: path.read_bytes() for path in tmp_path.iterdir()}
    for said in ("DeltaNet", "16 tokens", "4 tokens", "- steps: 3", 'ahn.from_pretrained("'):
        assert said in card


def test_the_card_names_the_base(tmp_path):
    settings = ahn.AHNConfig("Mamba2", window=5)
    base = {"name_or_path": "org/base", "revision": "abc"}
    card = model_card(settings, base, 1234567, "me/mine")
    header = card.split("---")[1]
    assert "base_model: org/base" in header and "library_name: ahn" in header
    assert "`org/base` at revision `abc`" in card and "1,234,567" in card
    assert "without training facts" in card
    assert 'ahn.from_pretrained("org/base", "me/mine", dtype="auto")' in card


def test_a_base_from_the_hub_is_recorded_with_its_revision(tmp_path):
    model = new_model()
    model.config._name_or_path, model.config._commit_hash = "org/base", COMMIT
    ahn.save_pretrained(model, tmp_path)
    base = json.loads((tmp_path / "ahn_config.json").read_text())["base"]
    assert (base["name_or_path"], base["revision"]) == ("org/base", COMMIT)


def test_pushing_needs_a_memory():
    with pytest.raises(ValueError, match="memory attached"):
        push_to_hub(shared_base(), "me/mine")
