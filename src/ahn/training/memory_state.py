"""The tensors of a memory, gathered from all shards to be saved, and loaded into them again."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from transformers import PreTrainedModel

from ahn.checkpoint import read_memory
from ahn.checkpoint.memory import check_keys, write_memory
from ahn.config import BUDGETS
from ahn.hf.attached_state import attached_state
from ahn.modeling.saving import is_memory
from ahn.training.distiller import memory_parameters
from ahn.training.zero3 import gathered_parameters


def gather(model: PreTrainedModel) -> dict[str, Tensor]:
    """The memory's tensors by name, unsharded and on the CPU; all processes must call it."""
    with gathered_parameters(memory_parameters(model).values()):
        return {name: _unsharded(tensor) for name, tensor in _memory_tensors(model).items()}


def save(model: PreTrainedModel, folder: Path, *, writes: bool) -> None:
    """Write the memory's folder. All processes must call it.

    Args:
        writes: true on the one process that writes.
    """
    state = gather(model)
    if writes:
        folder.mkdir(parents=True, exist_ok=True)
        write_memory(folder, state, model.config, attached_state(model).config, "ahn")


@torch.no_grad()
def load(model: PreTrainedModel, folder: Path) -> None:
    """Copy a folder's memory into an attached model. All processes must call it.

    Raises ValueError where the memory has another cell or base, before anything is copied.
    """
    stored = read_memory(folder)
    config = attached_state(model).config
    if stored.settings.memory != config.memory:
        raise ValueError(
            f"{folder}: expected a memory of {config.memory}, got {stored.settings.memory}"
        )
    for name in BUDGETS:
        expected, got = (getattr(x, name) for x in (config, stored.settings))
        if expected != got:
            raise ValueError(f"{folder}: expected {name}={expected}, got {got}")
    stored.check_base(model.config)
    with gathered_parameters(memory_parameters(model).values(), modified=True):
        tensors = _memory_tensors(model)
        check_keys(tensors, stored.state)
        for name, tensor in tensors.items():
            _copy(tensor, stored.state[name])


def _memory_tensors(model: PreTrainedModel) -> dict[str, Any]:
    return {name: tensor for name, tensor in model.state_dict().items() if is_memory(name)}


def _unsharded(tensor: Any) -> Tensor:
    if hasattr(tensor, "full_tensor"):  # a DTensor, sharded by FSDP2
        tensor = tensor.full_tensor()
    return tensor.detach().cpu().clone().contiguous()


def _copy(tensor: Any, source: Tensor) -> None:
    """Copy an unsharded tensor into one that FSDP2 may have sharded."""
    if not hasattr(tensor, "full_tensor"):
        tensor.copy_(source)
        return
    from torch.distributed.tensor import distribute_tensor

    source = source.to(device=tensor.device, dtype=tensor.dtype)
    tensor.copy_(distribute_tensor(source, tensor.device_mesh, tensor.placements))
