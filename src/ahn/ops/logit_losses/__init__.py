"""KL divergence and cross-entropies of logits, with their gradient."""

from ahn.ops.logit_losses.api import logit_losses

__all__ = ["logit_losses"]
