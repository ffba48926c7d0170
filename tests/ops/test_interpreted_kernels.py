"""Law: Triton's kernels equal the reference; on the CPU, by Triton's interpreter.

Each file in a process of its own: the interpreter is chosen when triton is imported.
"""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

pytest.importorskip("triton")
HERE = Path(__file__).parent


def interpreted(*arguments):
    """What `python ARGUMENTS` prints under the interpreter."""
    environment = {**os.environ, "TRITON_INTERPRET": "1"}
    command = [sys.executable, *map(str, arguments)]
    done = subprocess.run(command, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, (done.stdout + done.stderr)[-4000:]
    return done.stdout


def test_the_chunk_kernels_equal_the_reference():
    cases = HERE / "chunk_scan_cases.py"
    printed = interpreted("-m", "pytest", cases, "-p", "no:cacheprovider")
    assert printed.count(".") > 30


@pytest.mark.parametrize("script", sorted(x.name for x in HERE.glob("interpreted_*.py")))
def test_the_kernels_of_training_equal_pytorch(script):
    assert interpreted(HERE / script).startswith("compared")
