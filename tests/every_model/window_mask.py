"""The window alone, said to a base by a mask: what a model with its memory off must compute."""

from __future__ import annotations

import copy
import sys
from typing import Any

from torch import Tensor
from transformers import AttentionInterface, AttentionMaskInterface
from transformers.masking_utils import eager_mask

import ahn
from ahn.shapes import own_window
from tiny_models import one_shot

NAME = "window_by_mask"


def by_mask(base: Any, ids: Tensor, settings: ahn.AHNConfig) -> Tensor:
    """Logits of a base whose layers see sinks and window, by its own eager attention.

    A layer that slides or attends within chunks keeps its own, smaller window.
    """
    replaces = own_window(base.config.get_text_config(decoder=True)) is not None

    def mask(*args: Any, mask_function: Any, **kwargs: Any) -> Tensor:
        def sees(batch: Tensor, head: Tensor, query: Tensor, key: Tensor) -> Tensor:
            near = (key > query - settings.window) | (key < settings.num_sinks)
            own = key <= query if replaces else mask_function(batch, head, query, key)
            return near & own

        return eager_mask(*args, mask_function=sees, **kwargs)

    AttentionInterface.register(NAME, _eager)
    AttentionMaskInterface.register(NAME, mask)
    model = copy.deepcopy(base)
    model.set_attn_implementation(NAME)
    return one_shot(model, ids)


def _eager(module: Any, *args: Any, **kwargs: Any) -> Any:
    return sys.modules[type(module).__module__].eager_attention_forward(module, *args, **kwargs)
