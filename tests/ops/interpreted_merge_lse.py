"""Compares attentions merged by log-sum-exp with one over all keys, under TRITON_INTERPRET=1."""

import torch

from ahn.ops.window_attention.cudnn_forward import PartialAttention, merge_lse

torch.manual_seed(0)
compared = 0
for queries, has_full, num_anticausal in (
    (40, True, 39),
    (40, False, 39),
    (33, True, 0),
    (5, True, 4),
    (40, True, 7),
):
    scores = [3 * torch.randn(2, 3, queries, 6) for _ in range(3)]
    scores[1] = scores[1] if has_full else torch.full_like(scores[1], -torch.inf)
    scores[2][:, :, num_anticausal:] = -torch.inf  # the last queries see none of these keys
    values = torch.randn(3, 2, 3, 6, 24)
    base, full, anticausal = (
        PartialAttention((s.softmax(-1) @ v).nan_to_num(), s.logsumexp(-1))
        for s, v in zip(scores, values)
    )
    base = PartialAttention(*(x.transpose(1, 2).contiguous().transpose(1, 2) for x in base))
    anticausal = PartialAttention(*(x[:, :, :num_anticausal].flip(2) for x in anticausal))
    parts = (full if has_full else None, anticausal if num_anticausal else None)
    all_scores, before = torch.cat(scores, -1), base.lse.clone()
    for with_lse in (False, True):
        target = PartialAttention(base.out.clone(), base.lse.clone())
        merge_lse(target.out, target, *parts, with_lse)
        exact = all_scores.softmax(-1) @ torch.cat(list(values), -2)
        torch.testing.assert_close(target.out, exact)
        expected = all_scores.logsumexp(-1) if with_lse else before
        torch.testing.assert_close(target.lse, expected)
        compared += 1
print("compared", compared)
