"""Whatever writes is killed at any moment: nothing torn, nothing mixed, nothing left behind.

`AHN_KILLS` says how many times all writers together are killed; CI's own job takes more.
"""

from __future__ import annotations

import os
import random
import shutil
import signal
import time

import pytest
import torch

import ahn
from ahn.checkpoint import merge, read_memory, split
from ahn.generation import load_session, prefill, save_session
from ahn.io.checksum import read_json
from ahn.io.files import write_json
from ahn.io.partial import is_partial
from ahn.plots import training_figure
from checkpoint_folders import save_base, save_memory
from tiny_models import new_model, random_ids

KILLS = int(os.environ.get("AHN_KILLS", "32"))
LOG = [{"step": step, "loss": 1.0, "learning_rate": 0.1} for step in range(9)]


@pytest.fixture(scope="module")
def things(tmp_path_factory):
    """Two models that differ in weights and window, their caches, a base, a memory, both merged."""
    root = tmp_path_factory.mktemp("things")
    models = new_model(window=16), new_model(window=9)
    with torch.no_grad():
        for name, parameter in models[1].named_parameters():
            if ".ahn." in name:
                parameter.mul_(1.25)
    save_base(root / "base")
    save_memory(root / "memory")
    merge(root / "base", root / "memory", root / "merged")
    return root, models, [prefill(model, random_ids(40))[1] for model in models]


def _memory_is_whole(things, path):
    read = read_memory(path)
    _, models, _ = things
    model = models[read.settings.window == 9]
    return all(torch.equal(x, model.state_dict()[name]) for name, x in read.state.items())


def _model_is_whole(things, path):
    loaded = ahn.from_pretrained(path)
    _, models, _ = things
    model = models[loaded.config.ahn_config["window"] == 9]
    return all(torch.equal(x, model.state_dict()[k]) for k, x in loaded.state_dict().items())


def _session_is_whole(things, path):
    _, models, _ = things
    for model in models:
        try:
            return load_session(path, model).get_seq_length() == 40
        except ValueError:
            continue
    return False


def _merged_is_whole(things, path):
    return not ahn.checkpoint.diff(path, things[0] / "merged")


def _split_is_whole(things, path):
    return not ahn.checkpoint.diff(path, things[0] / "memory")


# For each writer: how it writes the one of the two, whether what is there is whole, and whether it
# writes over what is there.
WRITERS = {
    "ahn.save_pretrained": (
        lambda t, path, one: ahn.save_pretrained(t[1][one], path), _memory_is_whole, True),
    "ahn.save_pretrained, released": (
        lambda t, path, one: ahn.save_pretrained(t[1][one], path, format="released"),
        _memory_is_whole, True),
    "model.save_pretrained": (
        lambda t, path, one: t[1][one].save_pretrained(path), _model_is_whole, True),
    "model.save_pretrained in shards": (
        lambda t, path, one: t[1][one].save_pretrained(path, max_shard_size="100KB"),
        _model_is_whole, True),
    "save_session": (
        lambda t, path, one: save_session(t[2][one], path), _session_is_whole, True),
    "merge": (
        lambda t, path, one: merge(t[0] / "base", t[0] / "memory", path), _merged_is_whole, False),
    "split": (
        lambda t, path, one: split(t[0] / "merged", path), _split_is_whole, False),
    "JSON": (
        lambda t, path, one: write_json(path, {"one": [one] * 9999}),
        lambda t, path: len(set(read_json(path)["one"])) == 1, True),
    "a picture": (
        lambda t, path, one: training_figure(LOG, path),
        lambda t, path: path.read_bytes().endswith(b"IEND\xaeB`\x82"), True),
}  # fmt: skip


def killed(work, seconds, number) -> None:
    """Do something in a child that a signal ends after so many seconds."""
    child = os.fork()
    if child == 0:
        try:
            work()
        finally:
            os._exit(0)
    time.sleep(seconds)
    os.kill(child, number)
    os.waitpid(child, 0)


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore:.*expected the config of")
@pytest.mark.parametrize("writer", WRITERS)
def test_killed_at_any_moment(writer, things, tmp_path):
    write, is_whole, over = WRITERS[writer]
    path, chance = tmp_path / "out", random.Random(writer)
    began = time.perf_counter()
    write(things, path, 0)
    whole = time.perf_counter() - began
    refused = 0
    for turn in range(max(1, KILLS // len(WRITERS))):
        if not over:
            shutil.rmtree(path)
        number = chance.choice([signal.SIGKILL, signal.SIGTERM])
        killed(lambda one=1 - turn % 2: write(things, path, one), chance.uniform(0, whole), number)
        if over or path.exists():
            try:
                assert is_whole(things, path)
            except ValueError as error:  # files of two saves, which is seen
                assert "model.save_pretrained" in writer, error
                refused += 1
        if not over and path.exists():
            shutil.rmtree(path)
        write(things, path, turn % 2)
        assert is_whole(things, path)
        left = [x for x in tmp_path.rglob("*") if is_partial(x.name)]
        assert not left, left
