"""CONTRIBUTING.md, "Add a kernel backend": the row and the branch of its steps."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from ahn.ops import backends
from ahn.ops.backends import Backend, choose, dtype_unsupported_reason, register, unsupported_reason
from tiny_models import assert_close

OP = "cumulative_sum"


def with_scan(x: Tensor) -> Tensor:
    return x.cumsum(1)


def with_matmul(x: Tensor) -> Tensor:
    """The backend: one product with a triangle of ones."""
    return x.new_ones(x.shape[1], x.shape[1]).tril() @ x


def _matmul_unsupported_reason(x: Tensor) -> str | None:
    if x.shape[1] > 64:
        return f"at most 64 tokens, got {x.shape[1]}"
    return dtype_unsupported_reason((torch.float32,), x)


def cumulative_sum(x: Tensor, *, kernels: str = "auto") -> Tensor:
    """The op: sums of `[B, T, D]` over the tokens so far."""
    if choose("cumulative_sum", kernels, x) == "matmul":
        return with_matmul(x)
    return with_scan(x)


def test_it_equals_the_reference():
    for length in (1, 63, 64):
        x = torch.randn(2, length, 8)
        assert_close(with_matmul(x), with_scan(x.double()).float(), 1e-5)


@pytest.fixture
def table(monkeypatch):
    """The table as it is without the new row, to which it is then added."""
    monkeypatch.setattr(backends, "_TABLE", dict(backends._TABLE))
    register(Backend("cumulative_sum", "matmul", 1, _matmul_unsupported_reason))


def test_auto_takes_it_where_it_can_run(table):
    short, long, double = torch.ones(1, 64, 2), torch.ones(1, 65, 2), torch.ones(1, 4, 2).double()
    assert [choose(OP, "auto", x) for x in (short, long, double)] == ["matmul", "torch", "torch"]
    assert choose(OP, "torch", short) == "torch", "PyTorch alone"
    assert torch.equal(cumulative_sum(short), cumulative_sum(short, kernels="torch"))


def test_by_name_it_is_refused_with_the_reason(table):
    with pytest.raises(ValueError, match="kernels='matmul': expected at most 64 tokens, got 65"):
        cumulative_sum(torch.ones(1, 65, 2), kernels="matmul")
    reason = unsupported_reason(OP, "matmul", torch.ones(1, 4, 2).double())
    assert reason == "float32, got float64"
