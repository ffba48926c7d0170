"""The kernel that adds slots, compiled for Hopper without a GPU: run by `test_interpreted_kernels`.

It is a process of its own because it puts a driver that launches nothing in the place of Triton's.
"""

from __future__ import annotations

import torch
from chunk_scan_compiled import HALF
from triton.runtime import driver, jit

from ahn.ops.slots import choose
from ahn.ops.window_attention import SlotRows
from ahn.ops.window_attention.slot_rows import add_slot_rows
from compiled_for_hopper import HOPPER


def test_no_product_is_narrow(monkeypatch):
    compiled = {}
    run = jit.JITFunction.run

    def compile_only(self, *args, grid, warmup, **options):
        compiled[self.__name__] = run(self, *args, grid=grid, warmup=True, **options)

    monkeypatch.setattr(jit.JITFunction, "run", compile_only)
    driver.set_active(HOPPER)
    out, query = torch.zeros(2, 1, 4, 128, 64, dtype=torch.bfloat16)
    key = torch.zeros(1, 2, 128 + 128, 64, dtype=torch.bfloat16)
    priority, arriving = torch.zeros(2, 1, 2, 128)
    choice = choose(priority, torch.ones(1, 2, 128, dtype=torch.int32), arriving)
    rows = SlotRows(key, key.clone(), choice, 128, 128)
    add_slot_rows(out, torch.zeros(1, 4, 128), query, rows, 0.125)
    widths = [int(x) for x in HALF.findall(compiled["add_slot_rows_kernel"].asm["ttgir"])]
    assert widths and min(widths) >= 32, widths
