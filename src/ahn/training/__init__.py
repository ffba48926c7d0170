"""Train a memory by distilling the frozen model's own full attention (arXiv 2510.07318, 3.3)."""

from ahn.training.distillation import distillation_loss
from ahn.training.distiller import Distiller, memory_parameters
from ahn.training.loop import distill
from ahn.training.losses import register_loss, weighted_losses

__all__ = [
    "Distiller",
    "distill",
    "distillation_loss",
    "memory_parameters",
    "register_loss",
    "weighted_losses",
]
