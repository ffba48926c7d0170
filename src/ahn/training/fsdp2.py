"""Mixed precision under FSDP2: weights are rounded, losses and summed gradients are not."""

from __future__ import annotations

from dataclasses import replace

import torch
from accelerate import Accelerator


def round_weights_alone(accelerator: Accelerator) -> Accelerator:
    """Set FSDP2's precision policy in place, before anything is prepared.

    accelerate's own policy also rounds the outputs of the forward and the reduction of gradients;
    a loss in half precision has two or three digits. Weights are gathered in half precision: a
    layer's once in the forward pass, for both streams, and once in the backward pass, each time
    while the previous layer is computed.

    Returns:
        The same object; unchanged without FSDP2 or mixed precision.
    """
    plugin = getattr(accelerator.state, "fsdp_plugin", None)
    if plugin is not None and plugin.fsdp_version == 2 and plugin.mixed_precision_policy:
        plugin.mixed_precision_policy = replace(
            plugin.mixed_precision_policy, reduce_dtype=torch.float32, output_dtype=None
        )
    return accelerator
