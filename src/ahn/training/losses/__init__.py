"""Losses of distillation: a registry of functions, and the language-model head they go through."""

from ahn.training.losses.head import head_losses
from ahn.training.losses.layers import layer_distance, normalized_layer_distance
from ahn.training.losses.registry import (
    IGNORE,
    LAYERS,
    LOGITS,
    TARGETS,
    Loss,
    LossOutput,
    averaged_over,
    loss_by_name,
    register_loss,
    registered_losses,
    weighted_losses,
)

__all__ = [
    "IGNORE",
    "LAYERS",
    "LOGITS",
    "TARGETS",
    "Loss",
    "LossOutput",
    "averaged_over",
    "head_losses",
    "layer_distance",
    "loss_by_name",
    "normalized_layer_distance",
    "register_loss",
    "registered_losses",
    "weighted_losses",
]
