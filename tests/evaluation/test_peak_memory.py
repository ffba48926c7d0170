"""Law: what a process holds at most does not grow with the sample's length, measured."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

import ahn

SHORT, LONG = 3_000, 15_000  # tokens
BOUNDED = ["window", "ahn", "ahn-shuffled", "compressive-max", "compressive-avg"]
CHILD = """
import copy, json, sys, threading, time
from pathlib import Path
from types import SimpleNamespace
import torch
import ahn, standin
from ahn.evaluation.lm import AHNLM
from tiny_models import base_model, wake

torch.set_num_threads(1)
model = base_model("Qwen3", vocab_size=standin.VOCABULARY, head_dim=64, num_key_value_heads=4)
wake(ahn.attach(model, ahn.AHNConfig(memory="DeltaNet", window=64, num_sinks=4)))
text = standin.PARAGRAPH * 2000

def held():  # MiB of its own pages; those of files come and go with the machine's load
    lines = Path("/proc/self/status").read_text().splitlines()
    return sum(int(x.split()[1]) for x in lines if x.startswith(("RssAnon", "VmSwap"))) / 1024

def peak(method, kind, length):
    found, done = [held()], threading.Event()
    def watch():
        while not done.wait(0.002):
            found.append(held())
    watcher = threading.Thread(target=watch)
    watcher.start()
    read(method, kind, length)
    done.set()
    watcher.join()
    return max(found)

def read(method, kind, length):
    tokenizer = copy.deepcopy(standin.tokenizer())
    ours = AHNLM(model, method=method, tokenizer=tokenizer, prefill_chunk_size=512)
    ids = tokenizer(text)["input_ids"][:length]
    if kind == "score":
        ours._loglikelihood_tokens([(None, ids, ids[:40])], True)
    else:
        arguments = (tokenizer.decode(ids), {"until": [], "max_gen_toks": 4})
        ours.generate_until([SimpleNamespace(args=arguments, task_name=None)], True)

short, long, methods = json.loads(sys.argv[1])
grown = {}
for method in methods:
    for kind in ("score", "generate"):
        if (method, kind) == ("ahn-shuffled", "generate"):
            continue
        grown[f"{method} {kind}"] = -peak(method, kind, short) + peak(method, kind, long)
print(json.dumps(grown))
"""


@pytest.mark.slow
@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
def test_peak_memory_does_not_grow_with_the_length_of_a_sample():
    """MiB of the process's peak between a sample and one five times as long; full attention last.

    Its keys and values alone take 4 KiB a token.
    """
    tests = Path(__file__).parents[1]
    path = os.pathsep.join((str(Path(ahn.__file__).parents[1]), str(tests)))
    arguments = json.dumps([SHORT, LONG, [*BOUNDED, "full"]])
    done = subprocess.run(
        [sys.executable, "-c", CHILD, arguments],
        capture_output=True,
        text=True,
        env={**os.environ, "PYTHONPATH": path, "MALLOC_ARENA_MAX": "1"},
    )
    assert done.returncode == 0, done.stderr
    grown = json.loads(done.stdout.splitlines()[-1])
    assert min(grown.pop("full score"), grown.pop("full generate")) > 40, grown
    assert len(grown) == 2 * len(BOUNDED) - 1 and max(grown.values()) < 8, grown
