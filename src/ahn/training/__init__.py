"""Training a memory: losses and a plain loop."""

from ahn.training.distill import distill, distillation_loss, memory_parameters
from ahn.training.losses import kl_from_hidden

__all__ = ["distill", "distillation_loss", "kl_from_hidden", "memory_parameters"]
