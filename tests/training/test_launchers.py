"""`ahn train` under accelerate launch and torchrun, as documented, on two CPU processes."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from runs import losses, prepared, train, weights

ROOT = Path(__file__).parents[2]
DDP = f"accelerate.commands.launch --config_file {ROOT}/recipes/accelerate/ddp.yaml"
LAUNCHERS = {
    "accelerate": f"{DDP} --num_processes 2 --mixed_precision no --main_process_port 0",
    "torchrun": "torch.distributed.run --nproc_per_node 2 --standalone",
}


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    folder = prepared(tmp_path_factory.mktemp("launched"))
    train(folder, "one", max_steps=2)
    return folder


@pytest.mark.slow
@pytest.mark.parametrize("name", LAUNCHERS)
def test_two_processes_give_the_memory_of_one(folder, name):
    """Each has half of the batch of two."""
    words = f"""--model_name_or_path {folder}/base --dataset {folder}/data.jsonl
    --output_dir {folder}/{name} --max_steps 2 --logging_steps 1 --per_device_train_batch_size 1
    --learning_rate 1e-2 --map_rate 0.1 --window 16 --num_sinks 2 --cutoff_len 96 --filter_len 40
    --report_to none --disable_tqdm true --use_cpu true""".split()
    result = subprocess.run(
        [sys.executable, "-m", *LAUNCHERS[name].split(), "-m", "ahn", "train", *words],
        capture_output=True,
        text=True,
        timeout=120,
        env={**os.environ, "PYTHONPATH": os.pathsep.join(sys.path), "OMP_NUM_THREADS": "1"},
    )
    assert result.returncode == 0, result.stderr[-3000:]
    assert result.stdout.count("holds the memory.") == 1  # by the main process alone
    assert losses(folder / name) == pytest.approx(losses(folder / "one"), rel=1e-4)
    for key, tensor in weights(folder / "one").items():
        torch.testing.assert_close(weights(folder / name)[key], tensor, atol=1e-5, rtol=1e-3)


def launches() -> list[list[str]]:
    """Command lines of the documents that start several processes, as words."""
    text = (ROOT / "docs" / "training.md").read_text().replace("\\\n", " ").replace("$RANK", "0")
    lines = (line.split("#")[0].split() for line in text.splitlines())
    return [
        line for line in lines if line[:1] == ["torchrun"] or line[:2] == ["accelerate", "launch"]
    ]


@pytest.mark.parametrize("line", launches(), ids=" ".join)
def test_the_documents_lines_are_read(line, monkeypatch):
    """By the launchers' own parsers, and what is left by `ahn train`'s."""
    from accelerate.commands.launch import launch_command_parser
    from torch.distributed.run import get_args_parser

    from ahn.cli.train import parse

    monkeypatch.chdir(ROOT)
    own = line[1:] if line[0] == "torchrun" else line[2:]
    parser = get_args_parser() if line[0] == "torchrun" else launch_command_parser()
    found = parser.parse_args(own)
    assert found.module and found.training_script == "ahn"
    command, *words = found.training_script_args
    assert command == "train"
    if "--deepspeed" in words:  # of a package that need not be here
        assert json.loads(Path(words.pop()).read_text())["zero_optimization"] and words.pop()
    parse([*words, "--bf16", "false", "--output_dir", "out"])
