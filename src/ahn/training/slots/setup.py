"""Shares of a new memory's slots: found before the training, or given."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from itertools import islice
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from transformers import PreTrainedModel, TrainingArguments

from ahn.hf.attached_state import attached_state
from ahn.io.checksum import read_json
from ahn.io.files import write_json
from ahn.modeling import attach, detach
from ahn.training.batch import Batch
from ahn.training.distiller import only_trainable
from ahn.training.slots.shares import find_shares
from ahn.training.zero3 import is_zero3

FILE, KEY = "slot_shares.json", "slot_shares"
FIND, EQUAL = "find", "equal"
TEXTS = 16  # on which shares are found


def attach_shares(
    model: PreTrainedModel, source: str, dataset: Any, collator: Any, settings: TrainingArguments
) -> PreTrainedModel:
    """The model with slots whose shares are found on texts of the data set, or read from a file.

    What was found is written to `slot_shares.json` in the run's folder, and read from there by a
    run that is resumed.

    Args:
        source: `find`, `equal` (all alike), or a JSON file with `slot_shares`, `[L][G]`.
        collator: makes a batch of rows of the data set.

    Raises:
        ValueError: the file has no shares, those are none, or a sharded base cannot be searched.
    """
    if source == EQUAL:
        return model
    file = Path(settings.output_dir or ".", FILE) if source == FIND else Path(source)
    if source == FIND and not (settings.resume_from_checkpoint and file.is_file()):
        _find(model, dataset, collator, settings, file)
    values = read_json(file)
    if KEY not in values:
        raise ValueError(f"{file}: expected {KEY}, got {', '.join(sorted(values)) or 'nothing'}")
    state = attached_state(model)
    config = replace(state.config, slot_shares=values[KEY])
    return attach(detach(model), config, kernels=state.kernels)


def _find(
    model: PreTrainedModel, dataset: Any, collator: Any, settings: TrainingArguments, file: Path
) -> None:
    if is_zero3(settings) or settings.fsdp:
        raise ValueError(
            "slot_shares: expected equal or a file where the base is sharded, got find (find them "
            "first, on one device)"
        )
    config = attached_state(model).config
    model.to(settings.device)  # type: ignore[arg-type]
    with only_trainable(model, ()):
        found = find_shares(
            model,
            _batches(dataset, collator, settings),
            window=config.window,
            num_sinks=config.num_sinks,
            reduce=_summed,
            report=lambda line: print(line, flush=True) if settings.should_log else None,
        )
    if settings.should_save:
        file.parent.mkdir(parents=True, exist_ok=True)
        write_json(file, {KEY: found.shares, "kl": [list(entry) for entry in found.log]})
    if torch.distributed.is_initialized():
        torch.distributed.barrier()


def _batches(dataset: Any, collator: Any, settings: TrainingArguments) -> Iterator[Batch]:
    """This process's part of some rows of the data set, of all its length where that is known."""
    if hasattr(dataset, "__len__"):
        rows: Any = (dataset[i] for i in range(0, len(dataset), -(-len(dataset) // TEXTS)))
    else:
        rows = islice(dataset, TEXTS)
    for row in islice(rows, settings.process_index, None, settings.world_size):
        batch = {name: x.to(settings.device) for name, x in collator([row]).items()}
        yield Batch(batch["input_ids"], batch["labels"], batch.get("position_ids"))


def _summed(values: Tensor) -> Tensor:
    if torch.distributed.is_initialized():
        torch.distributed.all_reduce(values)
    return values
