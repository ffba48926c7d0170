"""`ahn serve`: what is checked and said before a server starts, and the command that starts it."""

from __future__ import annotations

import re
import shutil
import sys

import pytest

from ahn.checkpoint import merge
from ahn.serving import servers
from commands import call, error

GIB = 2**30


class Started(Exception):
    """In the place of the server that would take this process over."""


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("serve") / "merged"
    merge("embedded", "DeltaNet", folder)
    return folder


@pytest.fixture
def installed(monkeypatch):
    """Says which packages are installed."""

    def say(*names):
        monkeypatch.setattr(servers, "find_spec", lambda name: name if name in names else None)

    return say


@pytest.fixture
def started(monkeypatch):
    """Calls `ahn serve`, and returns the words of the server's command and what was said."""
    words = []

    def become(command):
        words[:] = command
        raise Started

    monkeypatch.setattr(servers, "become", become)

    def serve(*arguments):
        result = call("serve", *arguments)
        assert isinstance(result.exception, Started), (result.stderr, result.exception)
        return list(words), result.stderr

    return serve


def test_vllm_where_it_is_installed(folder, installed, started):
    installed("vllm", "uvicorn")
    options = ["--port", 80, "--cache-gib", 0.5, "--max-model-len", 100000, "--dtype", "float32"]
    words, said = started(folder, *options, "--", "--tensor-parallel-size", 2)
    assert words[:4] == [sys.executable, "-m", "vllm.entrypoints.openai.api_server", "--model"]
    rest = " ".join(words[4:])
    assert rest == (
        f"{folder} --host 127.0.0.1 --port 80 --dtype float32 --max-model-len 100000 "
        f"--kv-cache-memory-bytes {GIB // 2} --tensor-parallel-size 2"
    )
    # Rows of 2 heads of 2 x 64 and 2 gates, float32; a state of 4 x 64 x 64 needs 64 such tokens.
    page = 64 * 2 * (128 + 2) * 4
    held = 8 * (5 + 1 + 1 + 1) * page  # 8 layers: 257 tokens touch 6 pages, sinks 1, state 1
    assert f"a request holds {held / 2**20:.1f} MiB" in said
    assert f"{GIB // 2 // held} at once in 0.5 GiB on one device" in said


def test_transformers_elsewhere(folder, installed, started):
    installed("uvicorn")
    words, said = started(folder, "--host", "0.0.0.0")
    assert words[3:] == (
        ["serve", str(folder), "--host", "0.0.0.0", "--port", "8000", "--dtype", "auto"]
        + ["--trust-remote-code"]
    )
    assert said == f"{folder}: window 256, 4 sinks; transformers\n"


def test_what_is_asked_for_and_not_there(folder, installed):
    installed()
    assert "pip install 'ahn[vllm]' or pip install 'transformers[serving]'" in error(
        "serve", folder
    )
    installed("uvicorn")
    assert "expected pip install 'ahn[vllm]', got none" in error(
        "serve", folder, "--engine", "vllm"
    )
    assert "--max-model-len: expected vLLM" in error("serve", folder, "--max-model-len", 5)
    assert "--engine: expected auto, vllm or" in error("serve", folder, "--engine", "sglang")


def test_folders_that_cannot_be_served(tmp_path, folder, installed):
    installed("vllm", "uvicorn")
    assert "expected a folder, got none" in error("serve", tmp_path / "none")
    base = tmp_path / "base"
    base.mkdir()
    (base / "config.json").write_text("{}")
    assert "expected a base with a memory (ahn merge)" in error("serve", base)
    damaged = shutil.copytree(folder, tmp_path / "damaged")
    weights = max(damaged.glob("*.safetensors"))  # the memory's come last
    data = bytearray(weights.read_bytes())
    data[-1] ^= 1
    weights.write_bytes(data)
    assert "expected the bytes that were written" in error("serve", damaged)


def test_a_cache_too_small_for_one_request(folder, installed):
    installed("vllm")
    said = error("serve", folder, "--cache-gib", 0.001)
    assert re.search(r"--cache-gib: expected [\d.e-]+ GiB for the caches of one request", said)


@pytest.mark.parametrize("name", ["Slots", "GatedDeltaNet-Slots"])
def test_slots_are_served_by_transformers_alone(tmp_path, installed, started, name):
    merge("embedded", name, tmp_path / "merged")
    installed("vllm", "uvicorn")
    assert "slots: expected 0 in vLLM" in error("serve", tmp_path / "merged")
    started(tmp_path / "merged", "--engine", "transformers")


def test_the_help_says_which_engine():
    said = " ".join(call("serve", "--help").stdout.split())
    assert "auto: vLLM where it is installed" in said
