"""Law: the fused step equals the general path, by Triton's interpreter in its own process.

And its kernels compile for Hopper: the interpreter lets pass what the compiler does not.
"""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

pytest.importorskip("triton")
pytestmark = pytest.mark.timeout(1200)
CASES = Path(__file__).with_name("fused_step_cases.py")
COMPILER = CASES.parents[1] / "compiled_for_hopper.py"


def printed(*arguments, **environment):
    """What `python ARGUMENTS` prints; it must succeed."""
    done = subprocess.run(
        [sys.executable, *map(str, arguments)],
        env={**os.environ, "OMP_NUM_THREADS": "1", **environment},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, (done.stdout + done.stderr)[-4000:]
    return done.stdout


def test_the_fused_step_equals_the_general_path():
    printed("-m", "pytest", "-n", "2", CASES, "-p", "no:cacheprovider", TRITON_INTERPRET="1")


def test_the_kernels_of_the_fused_step_compile_for_hopper():
    assert re.search(r"^compiled \d{3}", printed("-O", COMPILER, CASES), re.MULTILINE)
