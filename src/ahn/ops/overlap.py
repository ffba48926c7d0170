"""Programmatic dependent launch: a kernel starts while the one before it is still running."""

from __future__ import annotations

from functools import cache
from typing import Any

import torch
import triton
import triton.language as tl

try:
    from triton.language.extra.cuda import gdc_launch_dependents, gdc_wait
except ImportError:  # before Triton 3.4, where `launch_options` turns it off

    @triton.jit
    def gdc_launch_dependents():
        pass

    @triton.jit
    def gdc_wait():
        pass

    HAS_OVERLAP = False
else:
    HAS_OVERLAP = True


@cache
def launch_options(device: torch.device, starts_chain: bool = False) -> dict[str, Any]:
    """Keywords of a launch whose kernel calls `let_next_start` and `wait_for_previous`.

    Every kernel of a chain calls both, so that what a kernel may touch after waiting has been
    left alone by all kernels before it. Before waiting it may read what the chain never writes,
    and what was written before the chain: its first kernel starts the ordinary way.
    """
    if not HAS_OVERLAP or torch.cuda.get_device_capability(device) < (9, 0):
        return {"OVERLAP": False}
    return {"OVERLAP": True, "launch_pdl": not starts_chain}


@triton.jit
def let_next_start(OVERLAP: tl.constexpr):
    """The next kernel may be put beside this one from here on."""
    if OVERLAP:
        gdc_launch_dependents()


@triton.jit
def wait_for_previous(OVERLAP: tl.constexpr):
    """Until here nothing is known of what earlier kernels write."""
    if OVERLAP:
        gdc_wait()
