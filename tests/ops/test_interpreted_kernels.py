"""Law: the chunk kernels equal the reference; on the CPU, by Triton's interpreter."""

import os
import subprocess
import sys
from pathlib import Path

import pytest


def test_the_chunk_kernels_equal_the_reference():
    pytest.importorskip("triton")
    cases = Path(__file__).with_name("chunk_scan_cases.py")
    result = subprocess.run(
        [sys.executable, "-m", "pytest", str(cases), "-p", "no:cacheprovider"],
        env={**os.environ, "TRITON_INTERPRET": "1"},
        capture_output=True,
        text=True,
    )
    assert result.returncode == 0, result.stdout + result.stderr
    assert result.stdout.count(".") > 30
