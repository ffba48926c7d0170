"""Liger-Kernel's norms, RoPE and MLP in a model, attached or not (arXiv 2410.10989)."""

from __future__ import annotations

import inspect
from typing import Any

import torch
from transformers import PreTrainedModel

from ahn.attach.saving import PREFIX

OPTIONS = {"cross_entropy": False, "fused_linear_cross_entropy": False}  # of heads we do not use


def patch_with_liger(
    model: PreTrainedModel, device: torch.device, options: dict[str, Any] | None = None
) -> None:
    """Put Liger-Kernel's modules in place of the model's own.

    Models of the family that are made later in this process get them as well.

    Args:
        device: where the model will run.
        options: of its patch for the family (`rope`, `rms_norm`, `swiglu`, ...); all that apply
            are on by default.

    Raises:
        ValueError: it is not installed, needs another device, does not know the family or an
            option.
    """
    if device.type == "cpu":
        raise ValueError("liger: expected a GPU, got a CPU")
    try:
        from liger_kernel.transformers.monkey_patch import MODEL_TYPE_TO_APPLY_LIGER_FN as PATCHES
    except ImportError as error:
        raise ValueError(f"liger: expected pip install liger-kernel, got: {error}") from error
    family = model.config.model_type.removeprefix(PREFIX)
    if family not in PATCHES:
        raise ValueError(f"liger: expected a family that Liger-Kernel knows, got {family!r}")
    known = inspect.signature(PATCHES[family]).parameters
    if unknown := [name for name in options or {} if name not in known or name == "model"]:
        names = ", ".join(name for name in known if name != "model")
        raise ValueError(f"liger: expected some of {names}, got {unknown[0]!r}")
    wanted = {name: on for name, on in OPTIONS.items() if name in known} | (options or {})
    PATCHES[family](model=model, **wanted)
