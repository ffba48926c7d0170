"""What FSDP2 rounds: weights where they are used, neither losses nor sums of gradients."""

from __future__ import annotations

from dataclasses import replace

import torch
from accelerate import Accelerator


def round_weights_alone(accelerator: Accelerator) -> Accelerator:
    """In place, before anything is prepared: accelerate's own choice rounds all three.

    A loss of half precision has two or three digits. Weights are gathered in half precision, a
    layer's once for both streams on the way forth and once on the way back, each while the layer
    before it is computed.

    Returns:
        The same object; without FSDP2 or mixed precision as it was.
    """
    plugin = getattr(accelerator.state, "fsdp_plugin", None)
    if plugin is not None and plugin.fsdp_version == 2 and plugin.mixed_precision_policy:
        plugin.mixed_precision_policy = replace(
            plugin.mixed_precision_policy, reduce_dtype=torch.float32, output_dtype=None
        )
    return accelerator
