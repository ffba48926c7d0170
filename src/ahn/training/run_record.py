"""What a run is: recorded in its checkpoints, and compared when it is resumed."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Mapping
from dataclasses import asdict
from itertools import islice
from typing import Any

from transformers import PreTrainedModel

from ahn.hf.attached_state import attached_state
from ahn.hf.fingerprint import fingerprint_of
from ahn.training.arguments import DistillArguments, RunArguments
from ahn.training.zero3 import is_zero3

SAMPLES = 64  # rows of the data set that are hashed, evenly spaced; of a stream the first
# Arguments that decide how the memory is trained. Neither steps nor processes are among them.
SETTINGS = (
    *("seed", "data_seed", "learning_rate", "weight_decay", "optim", "lr_scheduler_type"),
    *("max_grad_norm", "adam_beta1", "adam_beta2", "adam_epsilon"),
)
NOT_COMPARED = ("save_ahn_only",)
PHRASES = {  # how a difference in a part of the record is said
    "base": "a base with",
    "memory": "a memory with",
    "data": "training data with",
    "losses": "a run with",
    "training": "a run with",
}
NOT_TRAINED = ("window", "num_sinks")  # settings that a memory is evaluated and saved with


def record_of(
    attached: PreTrainedModel, dataset: Any, distill: DistillArguments, settings: RunArguments
) -> dict[str, Any]:
    """Base, cell, data, losses and optimizer of a run, as JSON holds them.

    The base's weights and the data are known by samples, see `ahn.hf.fingerprint`. Under ZeRO-3
    each process holds a part of the weights, so there the config alone tells bases apart.
    """
    fingerprint = fingerprint_of(attached.get_decoder(), attached_state(attached))
    cell = attached_state(attached).config.to_dict()
    record = {
        "base": {
            **fingerprint.config,
            "dtype": str(attached.dtype),
            "weights": None if is_zero3(settings) else fingerprint.base,
        },
        "memory": {k: x for k, x in cell.items() if k not in NOT_TRAINED},
        "data": _data_facts(dataset),
        "losses": {k: x for k, x in asdict(distill).items() if k not in NOT_COMPARED},
        "training": {name: getattr(settings, name, None) for name in SETTINGS},
    }
    return json.loads(json.dumps(record, default=str))


def check_same(recorded: Mapping[str, Any], own: Mapping[str, Any], checkpoint: str) -> None:
    """Raise ValueError naming the first thing in which a run differs from the one it resumes.

    What only one of the two knows is not compared: another version has recorded it.
    """
    for part in (name for name in PHRASES if name in recorded):
        before, now = recorded[part], own[part]
        for name in sorted(before.keys() & now.keys()):
            if None not in (before[name], now[name]) and before[name] != now[name]:
                raise ValueError(
                    f"{checkpoint}: expected {PHRASES[part]} {name}={before[name]}, got {now[name]}"
                )


def _data_facts(dataset: Any) -> dict[str, Any]:
    """Number of rows and a hash of some of them; of a stream only that of the first."""
    count = len(dataset) if hasattr(dataset, "__len__") else None
    rows: Iterable[Any] = islice(iter(dataset), SAMPLES)
    if count is not None and count > SAMPLES:
        rows = (dataset[i * count // SAMPLES] for i in range(SAMPLES))
    digest = hashlib.sha256()
    for row in rows:
        digest.update(json.dumps({name: list(row[name]) for name in sorted(row)}).encode())
    return {"rows": count, "content": digest.hexdigest()}
