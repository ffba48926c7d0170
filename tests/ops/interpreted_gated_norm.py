"""Compares norm and gate, and their gradients, with PyTorch's, under TRITON_INTERPRET=1."""

import torch

from ahn.memory import build_memory
from ahn.ops.gated_norm.autograd import gated_norm

torch.manual_seed(0)
compared = 0
for name in ("DeltaNet", "GatedDeltaNet", "Mamba2"):
    for heads, dim in ((4, 16), (3, 24)):
        cell = build_memory(name, 20, heads, dim)
        fused = cell.spec()
        with torch.no_grad():
            fused.norm.normal_()
        for batch, tokens in ((1, 37), (2, 5)):
            hidden = torch.randn(batch, tokens, 20)
            read = torch.randn(batch, tokens, heads, dim, requires_grad=True)
            leaves = [read, fused.norm, cell.g_proj.weight]
            wanted = torch.randn(batch, tokens, heads, dim)
            wanted = wanted.permute(2, 0, 1, 3).contiguous().permute(1, 2, 0, 3)
            ours = gated_norm(read, cell.output_gate(hidden), fused, torch.float32)
            found = [ours, *torch.autograd.grad(ours, leaves, wanted)]
            exact = cell.gated_norm(read, hidden)
            expected = [exact, *torch.autograd.grad(exact, leaves, wanted)]
            for one, other in zip(found, expected):
                torch.testing.assert_close(one, other, rtol=1e-5, atol=1e-5)
                compared += 1
print("compared", compared)
