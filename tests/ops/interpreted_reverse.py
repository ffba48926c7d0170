"""Compares tokens in reverse order, copied and added, with PyTorch's, under TRITON_INTERPRET=1."""

import torch

from ahn.ops.window_attention.blocks import reverse

torch.manual_seed(0)
compared = 0
for shape in ((3, 7, 4, 24), (1, 1, 2, 8), (2, 5, 16, 1), (2, 3, 5, 600)):
    tokens = torch.randn(shape[0], shape[1] + 1, *shape[2:])
    for x in (tokens[:, 1:], tokens[:, :-1].clone()):
        for add in (False, True):
            target = torch.randn(shape[0], shape[1] + 2, *shape[2:])
            expected = target.clone()
            part = expected[:, 1:-1]
            part.copy_(part + x.flip(1) if add else x.flip(1))
            reverse(target[:, 1:-1], x, add)
            assert torch.equal(target, expected)
            compared += 1
print("compared", compared)
