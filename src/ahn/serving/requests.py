"""What a request costs in an engine with paged caches, and how many fit at once."""

from __future__ import annotations

import os
from dataclasses import dataclass
from typing import Any

import torch

from ahn.checkpoint.weights import Weights
from ahn.config import AHNConfig
from ahn.cost import Shape
from ahn.memory import memory_by_name
from ahn.serving.pages import Page
from ahn.shapes import memory_layers, unbounded_layers

ENGINE_SHARE = 0.92  # of a device's memory, which vLLM takes unless told another


@dataclass(frozen=True)
class RequestCost:
    """Bytes of one request's caches.

    Attributes:
        page: of a layer with a memory.
        bounded: bytes in layers with a memory while it answers; the same for any length.
        each_token: bytes of a token in layers left with full attention.
    """

    page: Page
    bounded: int
    each_token: int

    def of_length(self, length: int) -> int:
        """Bytes of a request that is `length` tokens long."""
        return self.bounded + self.each_token * length


def request_cost(config: Any, settings: AHNConfig, number: int) -> RequestCost:
    """What a request costs while it is answered, one token a step.

    A step of a prompt holds the pages of its own tokens too.

    Args:
        config: of the attached model.
        number: bytes of one number of a key or value.
    """
    assert settings.memory is not None, "checked before"
    shape = Shape.of(config)
    memory = memory_by_name(settings.memory)
    page = Page.of(memory, shape.heads, shape.groups, shape.head_dim, number)
    layers = len(memory_layers(config, settings))
    pages = page.window_blocks(settings.window, settings.num_sinks, step=1) + 1  # and its state
    full = len(unbounded_layers(config)) - layers
    pair = 2 * shape.groups * shape.head_dim * number
    return RequestCost(page, layers * pages * page.size, full * pair)


def engine_cache_bytes(weights: Weights) -> int:
    """What vLLM keeps for caches on one device: its share of the memory, without the weights."""
    if torch.cuda.is_available():
        memory = torch.cuda.get_device_properties(0).total_memory
    else:
        memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    held = sum((weights.folder / name).stat().st_size for name in weights.names)
    return max(0, int(memory * ENGINE_SHARE) - held)
