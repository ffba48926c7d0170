"""One table of implementations: the backends of every op, and why one cannot run on given inputs.

An op registers its rows beside its contract, in its `api.py`, so importing the op fills the table.
Every op has a row named `torch`, which runs plain PyTorch on any input.

One choice, `kernels=`, governs all ops:

- `auto` takes the backend of the highest priority that can run on these inputs;
- `torch`, `fla` and `triton` take the backend of that name, and raise ValueError with the reason
  where it cannot run: a choice by name never falls back in silence;
- an op without a backend of the chosen name chooses as under `auto`. So `fla` concerns the
  recurrences alone, and window attention runs on cuDNN under `triton` too. Only `torch` is exact:
  every op has that row.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from importlib.util import find_spec
from typing import Any

import torch
from torch import Tensor

KERNELS = ("auto", "torch", "fla", "triton")
_PACKAGES = {"triton": "triton", "fla": "flash-linear-attention (pip install fla-core)"}
_INSTALLED = {package for package in _PACKAGES if find_spec(package) is not None}


@dataclass(frozen=True)
class Backend:
    """One implementation of an op: a row of the table.

    Attributes:
        op: what it implements: a function, or several that are chosen together (`gemv`).
        name: `torch`, or the library that computes it: `triton`, `fla`, `cudnn`.
        priority: `auto` takes the highest that can run; PyTorch has 0.
        unsupported_reason: takes what the op gives to `choose`. Returns what the backend expects
            and what it got, such as "a CUDA device, got cpu"; None where it can run.
    """

    op: str
    name: str
    priority: int
    unsupported_reason: Callable[..., str | None]


_TABLE: dict[str, dict[str, Backend]] = {}  # by op, then by name, the highest priority first


def register(backend: Backend) -> None:
    """Add a row; the op's first row brings its `torch` row with it.

    Raises ValueError where the op has a backend of that name.
    """
    op = backend.op
    rows = _TABLE.get(op) or {"torch": Backend(op, "torch", 0, lambda *_, **__: None)}
    if backend.name in rows:
        raise ValueError(f"{op}: expected an unused backend name, got {backend.name!r} again")
    every = sorted([*rows.values(), backend], key=lambda row: row.priority, reverse=True)
    _TABLE[op] = {row.name: row for row in every}


def registered_backends() -> list[Backend]:
    """All rows of the ops imported so far, op by op, the highest priority first."""
    return [row for rows in _TABLE.values() for row in rows.values()]


def choose(op: str, kernels: str, *args: Any, **kwargs: Any) -> str:
    """Name of the backend that runs `op` on these inputs, which its rows are asked about.

    Raises:
        ValueError: the backend asked for by name cannot run, or nothing bears that name.
    """
    rows = _TABLE[op]
    if kernels in rows:
        if reason := rows[kernels].unsupported_reason(*args, **kwargs):
            raise ValueError(f"kernels={kernels!r}: expected {reason}")
        return kernels
    check_kernels(kernels)
    can_run = (n for n, row in rows.items() if row.unsupported_reason(*args, **kwargs) is None)
    return next(can_run)


def unsupported_reason(op: str, name: str, *args: Any, **kwargs: Any) -> str | None:
    """Why the backend of that name cannot run `op` on these inputs; None where it can."""
    return _TABLE[op][name].unsupported_reason(*args, **kwargs)


def check_kernels(kernels: str) -> str:
    """Return `kernels`; raise ValueError where it is not one of `KERNELS`."""
    if kernels not in KERNELS:
        raise ValueError(f"kernels: expected one of {', '.join(KERNELS)}, got {kernels!r}")
    return kernels


def device_unsupported_reason(
    x: Tensor, package: str = "triton", capability: tuple[int, int] | None = None
) -> str | None:
    """Why kernels of `package` cannot run where `x` is; None where they can.

    Args:
        capability: the least compute capability of the device; None asks for none.
    """
    if not x.is_cuda:
        return f"a CUDA device, got {x.device}"
    if package not in _INSTALLED:
        return f"{_PACKAGES[package]} to be installed"
    if capability and (got := torch.cuda.get_device_capability(x.device)) < capability:
        least, found = (".".join(map(str, version)) for version in (capability, got))
        return f"a device of compute capability {least} or more, got {found}"
    return None


def dtype_unsupported_reason(dtypes: tuple[torch.dtype, ...], *tensors: Tensor) -> str | None:
    """Why kernels that take `dtypes` alone cannot run on these tensors; None where they can."""
    if all(x.dtype in dtypes for x in tensors):
        return None
    *names, last = (str(dtype).removeprefix("torch.") for dtype in dtypes)
    expected = f"{', '.join(names)} or {last}" if names else last
    got = dict.fromkeys(str(x.dtype).removeprefix("torch.") for x in tensors)
    return f"{expected}, got {' and '.join(got)}"
