"""`transformers serve` with a merged folder, asked by OpenAI's client: the answers of `generate`.

Both are installed for a step of their own, see `.ci/run`.
"""

from __future__ import annotations

import os
import socket
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
import torch
from transformers import AutoTokenizer

import ahn
from ahn.checkpoint import merge

openai = pytest.importorskip("openai")
pytest.importorskip("uvicorn")

TEMPLATE = "{% for message in messages %}{{ message.content }}{% endfor %}"
SOURCE = Path(ahn.__file__).parents[1]
CODE = (SOURCE / "ahn" / "config.py").read_text()  # longer than the window of 256 tokens
LONG = CODE + "\n\ndef load(path):\n    with open(path"
PROMPTS = [LONG, "import os\n\nclass", CODE[:900], CODE[:1800]]
SECONDS = 120  # for the server to start


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("serve") / "merged"
    merge("embedded", "GatedDeltaNet", folder)
    tokenizer = AutoTokenizer.from_pretrained(folder)
    tokenizer.chat_template = TEMPLATE
    tokenizer.save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def client(folder):
    """A client of a server that has never imported this package."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    command = [sys.executable, "-c", "from transformers.cli.transformers import main; main()"]
    options = ["serve", str(folder), "--host", "127.0.0.1", "--port", str(port)]
    options += ["--device", "cpu", "--dtype", "float32", "--trust-remote-code"]
    environment = {
        **os.environ,
        "PYTHONPATH": str(SOURCE),
        "HF_HUB_OFFLINE": "1",
        "HF_HOME": str(folder.parent / "home"),
    }
    with (folder.parent / "log").open("w") as log:
        server = subprocess.Popen([*command, *options], env=environment, stdout=log, stderr=log)
    try:
        _wait(server, port, folder.parent / "log")
        with openai.OpenAI(base_url=f"http://127.0.0.1:{port}/v1", api_key="none") as client:
            yield client
    finally:
        server.terminate()
        server.wait(timeout=30)


def _wait(server, port, log):
    for _ in range(SECONDS * 2):
        assert server.poll() is None, log.read_text()
        with socket.socket() as probe:
            if probe.connect_ex(("127.0.0.1", port)) == 0:
                return
        time.sleep(0.5)
    raise TimeoutError(log.read_text())


@pytest.fixture(scope="module")
def answers():
    """What `generate` answers to each prompt."""
    model, tokenizer = ahn.embedded.load("GatedDeltaNet")
    texts = []
    for prompt in PROMPTS:
        ids = tokenizer(prompt, return_tensors="pt").input_ids
        with torch.no_grad():
            answer = model.generate(ids, max_new_tokens=16, do_sample=False)[0, ids.shape[1] :]
        texts.append(tokenizer.decode(answer, skip_special_tokens=True))
    assert texts[0] and len(set(texts)) > 2
    return texts


def ask(client, folder, prompt, **options):
    return client.chat.completions.create(
        model=str(folder), messages=[{"role": "user", "content": prompt}],
        max_completion_tokens=16, temperature=0, **options,
    )  # fmt: skip


def test_chat(client, folder, answers):
    answer = ask(client, folder, PROMPTS[0])
    assert answer.choices[0].message.content == answers[0]
    assert answer.usage.completion_tokens == 16 and answer.usage.prompt_tokens > 260


def test_streaming(client, folder, answers):
    chunks = list(ask(client, folder, PROMPTS[0], stream=True))
    texts = [chunk.choices[0].delta.content for chunk in chunks if chunk.choices]
    assert "".join(text or "" for text in texts) == answers[0]
    assert sum(map(bool, texts)) > 4, "expected several pieces"


def test_four_at_once(client, folder, answers):
    with ThreadPoolExecutor(len(PROMPTS)) as pool:
        replies = list(pool.map(lambda prompt: ask(client, folder, prompt), PROMPTS))
    assert [reply.choices[0].message.content for reply in replies] == answers
