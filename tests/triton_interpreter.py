"""Triton's interpreter with an eye on memory: what it would let pass ends in an error."""

from __future__ import annotations

from contextlib import contextmanager
from types import SimpleNamespace

import numpy as np
import torch
import triton.language as tl
from triton.runtime import interpreter


@contextmanager
def unwritten_is_nan():
    """New tensors hold NaN until somebody writes them."""
    torch.use_deterministic_algorithms(True)
    try:
        yield
    finally:
        torch.use_deterministic_algorithms(False)


def mend_indexing(monkeypatch) -> None:
    """Triton 3.6 makes an index of an array of one number, which NumPy 2.4 refuses."""
    patch = interpreter._patch_lang_tensor

    def patched(tensor, scope):
        patch(tensor, scope)
        scope.set_attr(tensor, "__index__", lambda self: int(self.handle.data.item()))

    monkeypatch.setattr(interpreter, "_patch_lang_tensor", patched)


def mend_bfloat16(monkeypatch) -> None:
    """Triton 3.6 multiplies the bits of bfloat16 matrices, and cuts numbers off to make them."""

    def exact(handle):
        if handle.dtype.scalar != tl.bfloat16:
            return handle.data
        return (handle.data.astype(np.uint32) << 16).view(np.float32)

    def dot(self, a, b, added, *options):
        product = np.matmul(exact(a), exact(b), dtype=added.data.dtype)
        return interpreter.TensorHandle(product + added.data, added.dtype.scalar)

    cast = interpreter.InterpreterBuilder.cast_impl

    def rounded(self, x, to):
        if (x.dtype.scalar, to.scalar) != (tl.float32, tl.bfloat16):
            return cast(self, x, to)
        bits = x.data.astype(np.float32).view(np.uint32)
        bits = (bits + 0x7FFF + ((bits >> 16) & 1)) >> 16
        return interpreter.TensorHandle(bits.astype(np.uint16), tl.bfloat16)

    monkeypatch.setattr(interpreter.InterpreterBuilder, "create_dot", dot)
    monkeypatch.setattr(interpreter.InterpreterBuilder, "cast_impl", rounded)


def watch(monkeypatch, reachable=list) -> None:
    """No kernel touches memory that it was not given.

    Args:
        reachable: gives tensors whose addresses a kernel may find in a table.
    """
    ranges = np.zeros((0, 2), np.uint64)
    prepare = interpreter.GridExecutor._init_args_hst
    found = interpreter._interpreter

    def given(self, args, kwargs):
        nonlocal ranges
        prepared = prepare(self, args, kwargs)
        arguments = [*prepared[0], *prepared[1].values()]
        arguments += [x for group in arguments if isinstance(group, tuple) for x in group]
        tensors = [x for x in [*arguments, *reachable()] if torch.is_tensor(x)]
        ranges = np.array(sorted(map(_extent, tensors)), np.uint64)
        return prepared

    def check(pointers, mask):
        touched = pointers[np.broadcast_to(mask, pointers.shape)].astype(np.uint64)
        place = np.searchsorted(ranges[:, 0], touched, "right")
        last = np.maximum.accumulate(ranges[:, 1])  # extents may overlap
        assert ((place > 0) & (touched < last[np.maximum(place, 1) - 1])).all(), "out of bounds"

    def load(pointers, mask, *rest):
        check(pointers, mask)
        return found.load(pointers, mask, *rest)

    def store(pointers, value, mask):
        check(pointers, mask)
        return found.store(pointers, value, mask)

    watched = SimpleNamespace(**{**vars(found), "load": load, "store": store})
    monkeypatch.setattr(interpreter.GridExecutor, "_init_args_hst", given)
    monkeypatch.setattr(interpreter, "_interpreter", watched)


def _extent(x: torch.Tensor) -> tuple[int, int]:
    """Addresses of a tensor's first byte and of what lies behind its last."""
    last = (
        sum((size - 1) * stride for size, stride in zip(x.shape, x.stride())) if x.numel() else -1
    )
    return x.data_ptr(), x.data_ptr() + (last + 1) * x.element_size()
