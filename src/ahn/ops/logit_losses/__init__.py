"""KL and cross-entropy of logits with their gradient."""

from ahn.ops.logit_losses.api import logit_losses, why_not_fused_losses

__all__ = [
    "logit_losses",
    "why_not_fused_losses",
]
