"""The chunk kernels compiled for Hopper, without a GPU: run by `test_interpreted_kernels`.

It is a process of its own because it puts a driver that launches nothing in the place of Triton's.
"""

from __future__ import annotations

import re

import pytest
import torch
from triton.runtime import driver, jit

from ahn.ops.chunk_scan import Rule, scan, segments
from compiled_for_hopper import HOPPER

KERNELS = {
    "prepare_kernel",
    "segment_state_kernel",
    "pass_states_kernel",
    "output_kernel",
    "recompute_states_kernel",
    "state_gradient_kernel",
    "dq_kernel",
    "dkv_kernel",
}
HALF = re.compile(r"versionMajor = 3.*instrShape = \[16, (\d+), 16\]")


@pytest.mark.parametrize("delta", [True, False])
def test_no_product_is_narrow(delta, monkeypatch):
    """Triton compiles narrow products of half precision to wrong code; see `prepare.padded`."""
    compiled = {}
    run = jit.JITFunction.run

    def compile_only(self, *args, grid, warmup, **options):
        compiled[self.__name__] = run(self, *args, grid=grid, warmup=True, **options)

    monkeypatch.setattr(jit.JITFunction, "run", compile_only)
    monkeypatch.setattr(segments, "_segment_counts", lambda _: (3, 1))
    driver.set_active(HOPPER)
    x = torch.zeros(1, 192, 2, 16, dtype=torch.bfloat16, requires_grad=True)
    gate = torch.zeros(1, 192, 2)
    out, _ = scan(x, x, x, gate, gate, None, Rule(delta=delta, normalize=True))
    out.sum().backward()
    widths = {
        name: [int(width) for width in HALF.findall(kernel.asm["ttgir"])]
        for name, kernel in compiled.items()
    }
    assert set(widths) >= KERNELS
    assert min(width for found in widths.values() for width in found) >= 32, widths
