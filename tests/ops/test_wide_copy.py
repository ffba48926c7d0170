"""Rows copied as wider numbers are the same rows, whatever their size and where they begin."""

from __future__ import annotations

import pytest
import torch

from ahn.ops.wide_copy import concat_tokens, reverse_tokens, widest_views


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32, torch.float64])
@pytest.mark.parametrize(("dim", "offset"), [(1, 0), (2, 1), (3, 0), (4, 2), (64, 0), (64, 5)])
@torch.no_grad()
def test_copied_rows_are_the_same(dtype, dim, offset):
    flat = torch.randn(2 * 50 * 3 * dim + offset, dtype=dtype)[offset:]
    ring = flat.view(2, 50, 3, dim).transpose(1, 2)
    ring[0, 1, 9] = torch.nan
    blocks = (ring[:, :, 7:20], ring[:, :, :5], ring[:, :, 11:11])
    for got, expected in (
        (concat_tokens(blocks), torch.cat(blocks, 2)),
        (reverse_tokens(ring), ring.flip(2)),
        (concat_tokens(blocks[:1]), blocks[0]),
    ):
        assert got.dtype == dtype
        assert torch.equal(got.nan_to_num(9), expected.nan_to_num(9))
    assert concat_tokens(blocks[:1]).data_ptr() == blocks[0].data_ptr()


@torch.no_grad()
def test_the_widest_dtype_that_fits_everywhere_is_taken():
    x = torch.zeros(2, 3, 8, 64, dtype=torch.bfloat16)
    assert [y.dtype for y in widest_views(x, x[..., :32])] == [torch.complex128] * 2
    assert [y.dtype for y in widest_views(x, x[..., 4:])] == [torch.int64] * 2
    assert [y.dtype for y in widest_views(x, x[..., 2:])] == [torch.int32] * 2
    assert [y.dtype for y in widest_views(x, x[..., 1:])] == [torch.bfloat16] * 2
    assert [y.dtype for y in widest_views(x.transpose(2, 3))] == [torch.bfloat16]
    with torch.enable_grad():
        assert widest_views(x)[0] is x


def test_gradients_pass():
    blocks = [torch.randn(1, 2, n, 8, requires_grad=True) for n in (3, 2)]
    (concat_tokens(blocks).square().sum() + reverse_tokens(blocks[0]).sum()).backward()
    assert torch.equal(blocks[0].grad, 2 * blocks[0].detach() + 1)
    assert torch.equal(blocks[1].grad, 2 * blocks[1].detach())
