"""A gated MLP in plain PyTorch."""

from __future__ import annotations

from typing import Any

import torch.nn.functional as F
from torch import Tensor


def gated_mlp(x: Tensor, mlp: Any) -> Tensor:
    """`ahn.ops.gated_mlp` on any device; autograd saves what it computes."""
    inner = F.silu(F.linear(x, mlp.gate_proj.weight)) * F.linear(x, mlp.up_proj.weight)
    return F.linear(inner, mlp.down_proj.weight)
