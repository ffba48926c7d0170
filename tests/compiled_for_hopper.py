"""Compiles the kernels that a script of cases launches for Hopper, and launches none.

`python tests/compiled_for_hopper.py FILE`: the interpreter lets pass what the compiler does not.
What the script compares is of no account, since nothing has been computed. Prints the number of
kernels that were compiled; exits with 1 where one was not.
"""

from __future__ import annotations

import runpy
import sys
import traceback
from collections import Counter
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from triton.backends.compiler import GPUTarget
from triton.runtime import driver, jit

HOPPER = SimpleNamespace(
    get_current_target=lambda: GPUTarget("cuda", 90, 32),
    get_current_device=lambda: 0,
    get_current_stream=lambda device: 0,
)


def compile_only() -> tuple[Counter, list[str]]:
    """From here on kernels are compiled and not launched: how often each, and what failed."""
    compiled, failed, run = Counter(), [], jit.JITFunction.run

    def run_compiler(self, *args, grid, warmup, **options):
        try:
            run(self, *args, grid=grid, warmup=True, **options)
        except Exception:
            failed.append(f"{self.__name__}: {traceback.format_exc(limit=-1)}")
        compiled[self.__name__] += 1

    jit.JITFunction.run = run_compiler
    torch.equal = lambda *_: True  # nothing is computed
    torch.testing.assert_close = lambda *_, **__: None
    driver.set_active(HOPPER)
    torch.cuda.get_device_capability = lambda device=None: (9, 0)
    return compiled, failed


def run_cases(file: str) -> None:
    """Run a script, or a file of tests, to its end or to the first thing that it finds wrong."""
    sys.path.insert(0, str(Path(file).parent))
    if file.endswith("_cases.py"):
        pytest.main(["-q", "-p", "no:cacheprovider", file])
        return
    try:
        runpy.run_path(file, run_name="__main__")
    except Exception as error:  # nothing was computed, so comparisons fail
        print(f"{Path(file).name} ended with {type(error).__name__}")


if __name__ == "__main__":
    counts, errors = compile_only()
    run_cases(sys.argv[1])
    print("\n".join(errors))
    print(f"compiled {sum(counts.values())}: {dict(counts)}")
    sys.exit(bool(errors))
