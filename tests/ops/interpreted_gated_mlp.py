"""Compares a gated MLP with frozen weights, and how it is computed again, with PyTorch's, under
TRITON_INTERPRET=1."""

from types import SimpleNamespace

import torch
import torch.nn.functional as F
from torch import nn
from torch.utils.checkpoint import checkpoint

from ahn.ops.gated_mlp import autograd as ours
from ahn.ops.gated_mlp import triton as silu_mul

torch.manual_seed(0)
ours.ROWS = 16
calls = []
product = silu_mul.silu_mul_
silu_mul.silu_mul_ = lambda *x: (calls.append(1), product(*x))[1]
mlp = SimpleNamespace(
    gate_proj=nn.Linear(12, 40, bias=False),
    up_proj=nn.Linear(12, 40, bias=False),
    down_proj=nn.Linear(40, 12, bias=False),
)
for linear in vars(mlp).values():
    linear.requires_grad_(False)


def plain(x):
    return mlp.down_proj(F.silu(mlp.gate_proj(x)) * mlp.up_proj(x))


compared = 0
for shape in ((2, 21, 12), (1, 16, 12), (5, 12)):
    x, wanted = torch.randn(shape, requires_grad=True), torch.randn(shape)
    torch.testing.assert_close(ours.gated_mlp(x.detach(), mlp), plain(x.detach()))
    expected = torch.autograd.grad(x + plain(x.sin()), x, wanted)
    for again in (False, True):

        def layer(x):
            return x + ours.gated_mlp(x.sin(), mlp)

        calls.clear()
        out = checkpoint(layer, x, use_reentrant=False) if again else layer(x)
        torch.testing.assert_close(out, x + plain(x.sin()))
        (found,) = torch.autograd.grad(out, x, wanted)
        torch.testing.assert_close(found, expected[0])
        assert len(calls) == -(-x.numel() // 12 // 16), "computed once, in no backward pass"
        compared += 1
print("compared", compared)
