"""Rows moved as wider numbers are the same rows, whatever their size and where they begin."""

from __future__ import annotations

import pytest
import torch

from ahn.ops.moving import flipped, joined, wide


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32, torch.float64])
@pytest.mark.parametrize(("dim", "offset"), [(1, 0), (2, 1), (3, 0), (4, 2), (64, 0), (64, 5)])
@torch.no_grad()
def test_moved_rows_are_the_same(dtype, dim, offset):
    flat = torch.randn(2 * 50 * 3 * dim + offset, dtype=dtype)[offset:]
    ring = flat.view(2, 50, 3, dim).transpose(1, 2)
    ring[0, 1, 9] = torch.nan
    pieces = (ring[:, :, 7:20], ring[:, :, :5], ring[:, :, 11:11])
    for got, expected in (
        (joined(pieces), torch.cat(pieces, 2)),
        (flipped(ring), ring.flip(2)),
        (joined(pieces[:1]), pieces[0]),
    ):
        assert got.dtype == dtype
        assert torch.equal(got.nan_to_num(9), expected.nan_to_num(9))
    assert joined(pieces[:1]).data_ptr() == pieces[0].data_ptr()


@torch.no_grad()
def test_only_numbers_that_fit_everywhere_are_widened():
    x = torch.zeros(2, 3, 8, 64, dtype=torch.bfloat16)
    assert [y.dtype for y in wide(x, x[..., :32])] == [torch.complex128] * 2
    assert [y.dtype for y in wide(x, x[..., 4:])] == [torch.int64] * 2
    assert [y.dtype for y in wide(x, x[..., 2:])] == [torch.int32] * 2
    assert [y.dtype for y in wide(x, x[..., 1:])] == [torch.bfloat16] * 2
    assert [y.dtype for y in wide(x.transpose(2, 3))] == [torch.bfloat16]
    with torch.enable_grad():
        assert wide(x)[0] is x


def test_gradients_pass():
    pieces = [torch.randn(1, 2, n, 8, requires_grad=True) for n in (3, 2)]
    (joined(pieces).square().sum() + flipped(pieces[0]).sum()).backward()
    assert torch.equal(pieces[0].grad, 2 * pieces[0].detach() + 1)
    assert torch.equal(pieces[1].grad, 2 * pieces[1].detach())
