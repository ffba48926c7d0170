"""Compares RMSNorm with a frozen weight, and its gradient, with PyTorch's, under
TRITON_INTERPRET=1."""

import torch
import torch.nn.functional as F

from ahn.ops.rms_norm import rms_norm

torch.manual_seed(0)
compared = 0
for shape in ((2, 21, 48), (3, 5, 4, 24), (1, 1, 3000), (70, 64)):
    x, weight = torch.randn(shape, requires_grad=True), torch.randn(shape[-1])
    wanted = torch.randn(shape).transpose(0, 1).contiguous().transpose(0, 1)
    pairs = []
    for out in (rms_norm(x, weight, 1e-6), F.rms_norm(x, shape[-1:], weight, 1e-6)):
        pairs.append((out, *torch.autograd.grad(out, x, wanted)))
    for ours, expected in zip(*pairs):
        torch.testing.assert_close(ours, expected)
        compared += 1
print("compared", compared)
