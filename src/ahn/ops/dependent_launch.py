"""CUDA's programmatic dependent launch: a kernel starts while the one before it still runs."""

from __future__ import annotations

from functools import cache
from typing import Any

import torch
import triton
import triton.language as tl

try:
    from triton.language.extra.cuda import gdc_launch_dependents, gdc_wait
except ImportError:  # before Triton 3.4, where `launch_options` switches it off

    @triton.jit
    def gdc_launch_dependents():
        pass

    @triton.jit
    def gdc_wait():
        pass

    HAS_PDL = False
else:
    HAS_PDL = True


@cache
def launch_options(device: torch.device, starts_chain: bool = False) -> dict[str, Any]:
    """Launch keywords of a kernel that calls `launch_dependents` and `wait_for_prerequisites`.

    Every kernel of a chain calls both. So after the wait, all kernels of the chain before it have
    ended, and it may write what they read. Before the wait a kernel may read only what no kernel of
    the chain writes, and what was written before the chain. That is why the first kernel of a
    chain (`starts_chain`) is launched the ordinary way.
    """
    if not HAS_PDL or torch.cuda.get_device_capability(device) < (9, 0):
        return {"PDL": False}
    return {"PDL": True, "launch_pdl": not starts_chain}


@triton.jit
def launch_dependents(PDL: tl.constexpr):
    """From here on the next kernel may start."""
    if PDL:
        gdc_launch_dependents()


@triton.jit
def wait_for_prerequisites(PDL: tl.constexpr):
    """Wait until the earlier kernels have ended; only then can their results be read."""
    if PDL:
        gdc_wait()
