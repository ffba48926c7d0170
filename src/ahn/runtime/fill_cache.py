"""Read tokens for what the cache keeps of them alone."""

from __future__ import annotations

from contextlib import suppress
from typing import Any

import torch
from torch import nn
from torch.nn.modules.module import _has_any_global_hook
from transformers import PreTrainedModel

from ahn.hf.install import ATTACHED
from ahn.layer.context import AllKept


def fill_cache(model: PreTrainedModel, **inputs: Any) -> None:
    """Leave in the cache what `model.get_decoder()(**inputs, use_cache=True)` leaves there.

    The forward of an attached model ends within its last layer: nobody asks for the attention,
    MLP and norm that follow what is kept. It runs to its end where somebody does: with hooks on
    these modules, gradients, or compiled modules.
    """
    decoder = model.get_decoder()
    ends = hasattr(decoder, ATTACHED) and not torch.is_grad_enabled() and not _is_watched(decoder)
    options = {"ahn_keeps_alone": True} if ends else {}
    with suppress(AllKept):
        decoder(**inputs, **options, use_cache=True)


def _is_watched(decoder: Any) -> bool:
    """Whether anybody but this package sees a module of those that are left early, or left out."""
    *_, last = decoder.layers
    around = [module for name, module in decoder.named_children() if name != "layers"]
    entered = (decoder, last.self_attn)  # hooks before these run in any case
    found = [decoder, *around, *last.modules()]
    return _has_any_global_hook() or any(_has_hooks(x, before=x not in entered) for x in found)


def _has_hooks(module: nn.Module, before: bool) -> bool:
    """Whether something runs after a module's forward, around it, or (if asked) before it."""
    around = hasattr(module, "_hf_hook") or module._compiled_call_impl is not None
    wrapped = type(module).__module__.startswith("torch.distributed")
    hooks = module._forward_hooks or (before and module._forward_pre_hooks)
    return bool(around or wrapped or hooks)
