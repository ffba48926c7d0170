"""`ahn serve` with vLLM, two engines behind one address, asked by OpenAI's client.

vLLM and the client are installed for a step of their own, see `.ci/vllm`.
"""

from __future__ import annotations

import argparse
import inspect
import json
import os
import signal
import socket
import subprocess
import sys
import time
import urllib.request
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import pytest

pytest.importorskip("vllm")

from vllm_engines import (
    TOLERANCE,
    embedded_folder,
    largest_difference,
    prompts,
    tokenizer_of,
)

openai = pytest.importorskip("openai")
pytestmark = pytest.mark.timeout(1200)

SECONDS = 600  # for the server to start, on a machine that has other things to do
MOST = 2048  # tokens of a text
LENGTHS = [60, 270, 130, 520, 700, 20, 300, 258, 262, 400]
TEMPLATE = "{% for message in messages %}{{ message.content }}{% endfor %}"
UNITS = ["m", "s"]
SCHEMA = {
    "type": "object",
    "properties": {"unit": {"enum": UNITS}},
    "required": ["unit"],
    "additionalProperties": False,
}
CODE = inspect.getsource(argparse)[:2000]


@dataclass
class Running:
    """A server and the address that it listens on."""

    process: subprocess.Popen
    port: int
    log: Path

    def wait(self):
        for _ in range(SECONDS * 2):
            assert self.process.poll() is None, self.log.read_text()
            try:
                with urllib.request.urlopen(f"http://127.0.0.1:{self.port}/health", timeout=5):
                    return
            except OSError:
                time.sleep(0.5)
        raise TimeoutError(self.log.read_text())

    def metric(self, name):
        """The sum of a metric of all engines."""
        with urllib.request.urlopen(f"http://127.0.0.1:{self.port}/metrics", timeout=30) as page:
            lines = page.read().decode().splitlines()
        return sum(float(line.split()[-1]) for line in lines if line.startswith(f"{name}{{"))

    def kill(self, sign=signal.SIGKILL):
        os.killpg(self.process.pid, sign)
        self.process.wait(timeout=60)


def start(folder, port, log):
    engine = ["--data-parallel-size", "2", "--enforce-eager", "--max-num-seqs", "32"]
    engine += ["--max-num-batched-tokens", "384"]
    ours = ["--port", str(port), "--dtype", "float32", "--cache-gib", "0.25"]
    ours += ["--max-model-len", str(MOST)]
    command = [sys.executable, "-m", "ahn", "serve", str(folder), *ours, "--", *engine]
    environment = {**os.environ, "VLLM_ENABLE_V1_MULTIPROCESSING": "1"}
    with log.open("a") as file:
        process = subprocess.Popen(
            command, env=environment, stdout=file, stderr=file, start_new_session=True
        )
    return Running(process, port, log)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    folder = embedded_folder(tmp_path_factory.mktemp("server") / "model", "GatedDeltaNet")
    tokenizer = tokenizer_of(folder)
    tokenizer.chat_template = TEMPLATE
    tokenizer.save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def server(folder):
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    running = start(folder, port, folder.parent / "log")
    try:
        running.wait()
        yield running
    finally:
        if running.process.poll() is None:
            running.kill(signal.SIGTERM)


@pytest.fixture(scope="module")
def client(server):
    with openai.OpenAI(
        base_url=f"http://127.0.0.1:{server.port}/v1", api_key="none", max_retries=0
    ) as client:
        yield client


def complete(client, folder, prompt, **options):
    return client.completions.create(
        model=str(folder), prompt=prompt, temperature=0, **{"max_tokens": 16, **options}
    )


def answer(client, folder, prompt):
    """Ids and log-probabilities of a greedy completion of 16 tokens."""
    more = {"ignore_eos": True, "return_token_ids": True}
    choice = complete(client, folder, prompt, logprobs=0, extra_body=more).choices[0]
    return choice.token_ids, choice.logprobs.token_logprobs


def chat(client, folder, **options):
    return client.chat.completions.create(
        model=str(folder), messages=[{"role": "user", "content": CODE}], temperature=0,
        **{"max_completion_tokens": 16, **options},
    )  # fmt: skip


def test_what_a_request_costs_is_said_first(server):
    assert "at once in 0.2 GiB on one device" in server.log.read_text()


def test_two_hundred_at_once_are_each_as_if_alone(client, folder, server):
    """Their log-probabilities are those of the Hugging Face path, which reads each by itself."""
    asked = [prompt for prompt in prompts(LENGTHS) for _ in range(20)]
    with ThreadPoolExecutor(len(asked)) as pool:
        got = list(pool.map(lambda prompt: answer(client, folder, prompt), asked))
    assert all(len(ids) == 16 for ids, _ in got)
    different = {tuple(ids): (prompt, (ids, p)) for prompt, (ids, p) in zip(asked, got)}
    assert len(different) == len(LENGTHS), "a prompt has one greedy answer"
    spread = {}
    for prompt, (_, logprobs) in zip(asked, got):
        spread.setdefault(tuple(prompt), []).append(logprobs)
    for rows in spread.values():
        assert max(max(x) - min(x) for x in zip(*rows)) < TOLERANCE
    assert largest_difference(folder, *zip(*different.values())) < TOLERANCE


def test_chat_and_its_stream(client, folder):
    whole = chat(client, folder, logprobs=True)
    chunks = list(chat(client, folder, stream=True, stream_options={"include_usage": True}))
    texts = [chunk.choices[0].delta.content or "" for chunk in chunks if chunk.choices]
    assert "".join(texts) == whole.choices[0].message.content and sum(map(bool, texts)) > 4
    assert chunks[-1].usage.completion_tokens == 16 == len(whole.choices[0].logprobs.content)


def test_stop(client, folder):
    text = complete(client, folder, CODE).choices[0].text
    stop = text[3:6]
    choice = complete(client, folder, CODE, stop=stop).choices[0]
    assert choice.text == text[: text.index(stop)] and choice.finish_reason == "stop"


def test_json(client, folder):
    form = {"type": "json_schema", "json_schema": {"name": "form", "schema": SCHEMA}}
    reply = chat(client, folder, response_format=form)
    assert json.loads(reply.choices[0].message.content)["unit"] in UNITS


def test_bad_requests_are_4xx_and_the_server_lives_on(client, folder, server):
    for wrong in ({"max_tokens": -1}, {"prompt": [2] * (MOST + 1)}, {"logprobs": "many"}):
        with pytest.raises(openai.APIStatusError) as error:
            complete(client, folder, **{"prompt": "import", **wrong})
        assert 400 <= error.value.status_code < 500, wrong
    with pytest.raises(openai.NotFoundError):
        complete(client, "another", "import")
    assert complete(client, folder, "import").choices[0].text


def test_a_client_that_hangs_up_frees_what_it_held(client, folder, server):
    stream = complete(client, folder, CODE, max_tokens=1000, stream=True)
    next(iter(stream))
    assert server.metric("vllm:num_requests_running") == 1
    stream.close()
    for _ in range(60):
        if server.metric("vllm:num_requests_running") == 0:
            break
        time.sleep(0.5)
    assert server.metric("vllm:kv_cache_usage_perc") == 0


def test_killed_and_started_again(client, folder, server):
    before = complete(client, folder, CODE).choices[0].text
    server.kill()
    with pytest.raises(openai.APIConnectionError):
        complete(client, folder, CODE)
    server.process = start(folder, server.port, server.log).process
    server.wait()
    assert complete(client, folder, CODE).choices[0].text == before
