"""Law: maps of a decoding step err no more than the library's, at the sizes of real models."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from measures import DEVICE, difference

from ahn.ops.gemv import Linear, Norm, linear_add, norm_linear, norm_swiglu

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device"),
]
ROWS = (1, 3, 32, 40)  # one, few by two sizes of a product, and many
SIZES = {2048: 11008, 3584: 18944}


def draw_map(rows, columns, dtype, bias=False):
    weight = torch.randn(rows, columns, dtype=dtype, device=DEVICE) / columns**0.5
    return Linear(weight, torch.randn(rows, dtype=dtype, device=DEVICE) if bias else None)


def linear(x, one):
    return F.linear(x, one.weight.to(x.dtype), None if one.bias is None else one.bias.to(x.dtype))


def normed(x, norm):
    return F.rms_norm(x, x.shape[1:], norm.weight.to(x.dtype), norm.eps)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("hidden", SIZES)
@pytest.mark.parametrize("rows", ROWS)
def test_maps_err_no_more_than_the_librarys(rows, hidden, dtype):
    torch.manual_seed(0)
    x = 3 * torch.randn(rows, hidden, dtype=dtype, device=DEVICE)
    inner = torch.randn(rows, SIZES[hidden], dtype=dtype, device=DEVICE)
    norm = Norm(1 + 0.1 * torch.randn(hidden, dtype=dtype, device=DEVICE), 1e-6)
    maps = [draw_map(size, hidden, dtype, bias=size > 16) for size in (hidden, 256, 256, 16)]
    gate, up = (draw_map(SIZES[hidden], hidden, dtype) for _ in range(2))
    output, down = draw_map(hidden, hidden, dtype, True), draw_map(hidden, SIZES[hidden], dtype)
    head = draw_map(40_000, hidden, dtype)
    pairs = {
        "maps": (
            lambda x, _: torch.cat([linear(normed(x, norm), one) for one in maps], 1),
            lambda x, _: norm_linear(x, norm, maps),
        ),
        "head": (
            lambda x, _: linear(normed(x, norm), head),
            lambda x, _: norm_linear(x, norm, [head]),
        ),
        "gated": (
            lambda x, _: F.silu(linear(normed(x, norm), gate)) * linear(normed(x, norm), up),
            lambda x, _: norm_swiglu(x, norm, gate, up),
        ),
        "output": (
            lambda x, _: x + linear(x, output),
            lambda x, _: linear_add(x, output, x.clone()),
        ),
        "down": (
            lambda x, inner: x + linear(inner, down),
            lambda x, inner: linear_add(inner, down, x.clone()),
        ),
    }
    for name, (plain, ours) in pairs.items():
        exact = plain(x.double(), inner.double())
        assert difference(ours(x, inner), exact) <= 1.2 * difference(plain(x, inner), exact), name
