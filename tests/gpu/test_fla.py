"""Law: flash-linear-attention behind our contract equals the reference (it tunes for a minute)."""

from __future__ import annotations

import pytest
import torch
from measures import DEVICE

from ahn.ops.delta_rule import delta_rule
from ahn.ops.ssd import ssd

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device"),
]
pytest.importorskip("fla")


@pytest.mark.parametrize("length", [4, 65])
@torch.no_grad()
def test_it_equals_the_reference(length):
    query = torch.randn(2, length, 4, 64, device=DEVICE, dtype=torch.bfloat16)
    key, value = torch.randn(2, 2, length, 2, 64, device=DEVICE, dtype=torch.bfloat16)
    beta, dt = torch.rand(2, 2, length, 4, device=DEVICE)
    log_decay, state = -0.1 * beta, torch.randn(2, 4, 64, 64, device=DEVICE)
    calls = [
        (delta_rule, (query, key, value, beta, None, state), {"scale": 0.3}),
        (delta_rule, (query, key, value, beta, log_decay, state), {"scale": 0.3}),
        (ssd, (query, key, value, log_decay, state), {"dt": dt}),
    ]
    for op, arguments, options in calls:
        expected = op(*arguments, **options, normalize=True, kernels="torch")
        got = op(*arguments, **options, normalize=True, kernels="fla")
        for mine, theirs in zip(got, expected):
            assert (mine.float() - theirs).norm() <= 2**-6 * theirs.norm()


def test_float32_and_wide_heads_are_refused_with_the_reason():
    x, beta = torch.zeros(1, 9, 1, 32, device=DEVICE), torch.zeros(1, 9, 1, device=DEVICE)
    with pytest.raises(ValueError, match="kernels='fla': expected float16 or bfloat16"):
        delta_rule(x, x, x, beta, kernels="fla")
    wide = torch.zeros(1, 9, 1, 512, device=DEVICE, dtype=torch.bfloat16)
    with pytest.raises(ValueError, match="kernels='fla': expected a head size of at most 256"):
        delta_rule(wide, wide, wide, beta, kernels="fla")
