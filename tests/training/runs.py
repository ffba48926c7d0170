"""Small training runs, through the same function as `ahn train`."""

from __future__ import annotations

import json
import os
import random
import subprocess
import sys
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file
from transformers import AutoTokenizer

from ahn.embedded import BASE
from ahn.training.arguments import DistillArguments, ModelArguments, RunArguments
from ahn.training.data import DataArguments
from ahn.training.run import Outcome, run
from tiny_models import base_model

SETTINGS: dict[type, dict[str, Any]] = {
    ModelArguments: {"window": 16, "num_sinks": 2},
    DataArguments: {"cutoff_len": 96, "filter_len": 40},
    DistillArguments: {"map_rate": 0.1},
    RunArguments: {
        "max_steps": 8,
        "save_steps": 3,
        "logging_steps": 1,
        "per_device_train_batch_size": 2,
        "learning_rate": 1e-2,
        "disable_tqdm": True,
        "use_cpu": True,
        "report_to": "none",
    },
}


def prepared(folder: Path, seed: int = 0) -> Path:
    """A folder with a tiny base, its tokenizer, and data to train on."""
    base_model(vocab_size=4096, num_hidden_layers=2, seed=seed).save_pretrained(folder / "base")
    AutoTokenizer.from_pretrained(BASE).save_pretrained(folder / "base")
    words = Path(json.__file__).read_text().split()
    generator = random.Random(0)
    rows = [{"text": " ".join(generator.choices(words, k=40))} for _ in range(30)]
    (folder / "data.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return folder


def train(folder: Path, out: str, **changes: Any) -> Outcome:
    """A run on a prepared folder; `changes` go to the arguments that have them."""
    given = {
        "model_name_or_path": str(folder / "base"),
        "dataset": str(folder / "data.jsonl"),
        "output_dir": str(folder / out),
        **changes,
    }
    groups = []
    for kind, settings in SETTINGS.items():
        names = kind.__dataclass_fields__  # type: ignore[attr-defined]
        groups.append(kind(**{**settings, **{k: v for k, v in given.items() if k in names}}))
    return run(*groups)


def in_two_processes(script: Path, folder: Path, **variables: str) -> None:
    """Run a script on a folder as two gloo processes; its errors are the test's."""
    path = os.pathsep.join([str(script.parent), *sys.path])
    command = [sys.executable, "-m", "torch.distributed.run", "--nproc_per_node=2", "--standalone"]
    result = subprocess.run(
        [*command, script, folder],
        capture_output=True,
        text=True,
        timeout=300,
        env={**os.environ, "PYTHONPATH": path, "OMP_NUM_THREADS": "1", **variables},
    )
    assert result.returncode == 0, result.stderr[-3000:]


def weights(folder: Path) -> dict[str, torch.Tensor]:
    return load_file(folder / "ahn_model.safetensors")


def same_weights(left: Path, right: Path) -> bool:
    """Bit for bit, and trained at all."""
    a, b = weights(left), weights(right)
    assert a.keys() == b.keys() and any(x.abs().max() > 0 for n, x in a.items() if "o_proj" in n)
    return all(torch.equal(a[name], b[name]) for name in a)


def losses(folder: Path) -> dict[int, float]:
    log = json.loads((folder / "training.json").read_text())["log"]
    return {entry["step"]: entry["loss"] for entry in log if "loss" in entry}
