"""Law: Triton's kernels equal the reference, by Triton's interpreter, and compile for Hopper.

Each file in a process of its own: the interpreter is chosen when triton is imported.
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
HERE = Path(__file__).parent
COMPILER = HERE.parent / "compiled_for_hopper.py"
SCRIPTS = sorted(x.name for x in HERE.glob("interpreted_*.py"))
CASES = ("-m", "pytest", "-n", "2", "-p", "no:cacheprovider")


def printed(*arguments, **environment):
    """What `python ARGUMENTS` prints; it must succeed."""
    environment = {**os.environ, "OMP_NUM_THREADS": "1", **environment}
    command = [sys.executable, *map(str, arguments)]
    done = subprocess.run(command, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, (done.stdout + done.stderr)[-4000:]
    return done.stdout


def passed(file):
    """How many cases of a file pass; all must."""
    (number,) = re.findall(r"(\d+) passed", printed(*CASES, HERE / file, TRITON_INTERPRET="1"))
    return int(number)


def test_the_chunk_kernels_equal_the_reference():
    assert passed("chunk_scan_cases.py") > 30


def test_flash_attention_equals_the_reference():
    assert passed("flash_cases.py") >= 14


def test_the_chunk_kernels_compile_for_hopper():
    assert "2 passed" in printed(*CASES, HERE / "chunk_scan_compiled.py")


def test_the_kernel_of_slots_compiles_for_hopper():
    assert "1 passed" in printed(*CASES, HERE / "slot_rows_compiled.py")


@pytest.mark.parametrize("script", SCRIPTS)
def test_the_kernels_of_training_compile_for_hopper(script):
    assert re.search(r"^compiled [1-9]", printed("-O", COMPILER, HERE / script), re.MULTILINE)


@pytest.mark.parametrize("script", SCRIPTS)
def test_the_kernels_of_training_equal_pytorch(script):
    assert printed(HERE / script, TRITON_INTERPRET="1").startswith("compared")
