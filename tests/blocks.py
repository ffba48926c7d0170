"""Plain PyTorch in place of the kernels that blocks of window attention are made of."""

import torch


def scores_of(query, key, is_causal, scale):
    """Scaled scores `[B, H, C, N]`, -inf where a causal query must not look."""
    scores = query @ key.transpose(-1, -2) * scale
    if not is_causal:
        return scores
    hidden = torch.ones(scores.shape[-2:], dtype=torch.bool).triu(1)
    return scores.masked_fill(hidden, -torch.inf)


def join(out, lse, part, part_lse, is_reversed=False):
    if is_reversed:
        part, part_lse = part.flip(2), part_lse.flip(2)
    rows = slice(part.shape[2])
    whole = torch.logaddexp(lse[:, :, rows], part_lse)
    share = (lse[:, :, rows] - whole).exp()[..., None]
    out[:, :, rows] = out[:, :, rows] * share + part * (part_lse - whole).exp()[..., None]
    lse[:, :, rows] = whole
