"""Compares the join of parts of a softmax with the whole one, under TRITON_INTERPRET=1."""

import torch

from ahn.ops.window_attention.cudnn_forward import Part, merge_lse

torch.manual_seed(0)
compared = 0
for rows, shared, far in (
    (40, True, 39),
    (40, False, 39),
    (33, True, 0),
    (5, True, 4),
    (40, True, 7),
):
    scores = [3 * torch.randn(2, 3, rows, 6) for _ in range(3)]
    scores[1] = scores[1] if shared else torch.full_like(scores[1], -torch.inf)
    scores[2][:, :, far:] = -torch.inf  # the last queries see nothing there
    values = torch.randn(3, 2, 3, 6, 24)
    parts = [
        Part((s.softmax(-1) @ v).nan_to_num(), s.logsumexp(-1)) for s, v in zip(scores, values)
    ]
    near = Part(*(x.transpose(1, 2).contiguous().transpose(1, 2) for x in parts[0]))
    turned = Part(*(x[:, :, :far].flip(2) for x in parts[2])) if far else None
    whole = torch.cat(scores, -1)
    before = near.lse.clone()
    for with_lse in (False, True):
        own = Part(near.out.clone(), near.lse.clone())
        merge_lse(own.out, own, parts[1] if shared else None, turned, with_lse)
        torch.testing.assert_close(own.out, whole.softmax(-1) @ torch.cat(list(values), -2))
        expected = whole.logsumexp(-1) if with_lse else before
        torch.testing.assert_close(own.lse, expected)
        compared += 1
print("compared", compared)
