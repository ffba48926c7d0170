"""The memory of a model that is trained, whole from however it is sharded, and back."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from transformers import PreTrainedModel

from ahn.checkpoint import read_memory
from ahn.checkpoint.memory import check_keys, write_memory
from ahn.hf.attached_state import attached_state
from ahn.modeling.saving import is_memory
from ahn.training.distiller import memory_parameters
from ahn.training.zero3 import whole


def gathered(model: PreTrainedModel) -> dict[str, Tensor]:
    """The memory's tensors, whole, on the CPU; all processes must call it."""
    with whole(memory_parameters(model).values()):
        return {name: _whole(tensor) for name, tensor in _own(model).items()}


def save(model: PreTrainedModel, folder: Path, *, here: bool) -> None:
    """Write the memory's folder; all processes call it, `here` is true on the one that writes."""
    state = gathered(model)
    if here:
        folder.mkdir(parents=True, exist_ok=True)
        write_memory(folder, state, model.config, attached_state(model).config, "ahn")


@torch.no_grad()
def load(model: PreTrainedModel, folder: Path) -> None:
    """Copy a folder's memory into an attached model.

    Raises ValueError where it is of another cell or base, before anything is copied.
    """
    stored = read_memory(folder)
    cell = attached_state(model).config.memory
    if stored.settings.memory != cell:
        raise ValueError(f"{folder}: expected a memory of {cell}, got {stored.settings.memory}")
    stored.check_base(model.config)
    with whole(memory_parameters(model).values(), changed=True):
        own = _own(model)
        check_keys(own, stored.state)
        for name, tensor in own.items():
            _copy(tensor, stored.state[name])


def _own(model: PreTrainedModel) -> dict[str, Any]:
    return {name: tensor for name, tensor in model.state_dict().items() if is_memory(name)}


def _whole(tensor: Any) -> Tensor:
    if hasattr(tensor, "full_tensor"):  # sharded by FSDP2
        tensor = tensor.full_tensor()
    return tensor.detach().cpu().clone().contiguous()


def _copy(tensor: Any, whole: Tensor) -> None:
    if not hasattr(tensor, "full_tensor"):
        tensor.copy_(whole)
        return
    from torch.distributed.tensor import distribute_tensor

    whole = whole.to(device=tensor.device, dtype=tensor.dtype)
    tensor.copy_(distribute_tensor(whole, tensor.device_mesh, tensor.placements))
