"""The position router: how much of what is read is added, by the number of tokens compressed."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from transformers import initialization as init


class PositionRouter(nn.Module):
    """sigmoid(alpha log(n / window) + beta) for each head, n tokens written so far (released code).

    Parameter names are the released ones, `model.layers.N.ahn_router.{alpha,beta}`.
    """

    def __init__(self, num_heads: int) -> None:
        super().__init__()
        self.alpha = nn.Parameter(torch.zeros(num_heads))
        self.beta = nn.Parameter(torch.zeros(num_heads))

    def forward(self, read: Tensor, num_written: Tensor, window: int) -> Tensor:
        """Scale `read` `[B, E, H, V]`; num_written `[B or 1, E]` counts the reader's own write.

        Rows where nothing is written yet (counts below 1) read zeros, so any finite scale will do.
        """
        log_ratio = (num_written.clamp(min=1) / window).log()[..., None].to(self.alpha.dtype)
        return read * torch.sigmoid(self.alpha * log_ratio + self.beta)[..., None].to(read.dtype)

    @torch.no_grad()
    def reset_parameters(self) -> None:
        """Zeros, as the released training code does: half of what is read is added at first."""
        init.zeros_(self.alpha)
        init.zeros_(self.beta)
