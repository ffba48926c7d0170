"""Views and sums whose gradients lie as the next kernels want them."""

from __future__ import annotations

import torch


class TokenSlice(torch.autograd.Function):
    """Tokens `low` to `high` of `[B, H, T, K]`; the gradient has the tensor's memory layout.

    The gradient of a plain slice is in the order of its dimensions, and the sum with the other
    gradients, which are in the order of the projections, would be strided.
    """

    @staticmethod
    def forward(ctx, x, low, high):
        ctx.shape, ctx.low, ctx.high = x.shape, low, high
        ctx.order = sorted(range(x.ndim), key=lambda dim: -x.stride(dim))
        return x[:, :, low:high]

    @staticmethod
    def backward(ctx, gradient):
        out = torch.empty_permuted(
            ctx.shape, ctx.order, dtype=gradient.dtype, device=gradient.device
        )
        out[:, :, : ctx.low] = 0
        out[:, :, ctx.low : ctx.high] = gradient
        out[:, :, ctx.high :] = 0
        return out, None, None


class AddToLast(torch.autograd.Function):
    """`read` added to the last tokens of `out`: the backward pass pads and sums nothing."""

    @staticmethod
    def forward(ctx, out, read):
        ctx.count = read.shape[1]
        merged = torch.empty_like(out)
        exact = out.shape[1] - ctx.count
        merged[:, :exact] = out[:, :exact]
        torch.add(out[:, exact:], read, out=merged[:, exact:])
        return merged

    @staticmethod
    def backward(ctx, gradient):
        return gradient, gradient[:, -ctx.count :]
