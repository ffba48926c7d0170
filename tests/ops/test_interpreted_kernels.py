"""Law: the chunk kernels equal the reference, by Triton's interpreter, and compile for Hopper."""

import os
import subprocess
import sys
from pathlib import Path

import pytest


def run(cases: str, **environment: str) -> str:
    pytest.importorskip("triton")
    result = subprocess.run(
        [sys.executable, "-m", "pytest", Path(__file__).with_name(cases), "-p", "no:cacheprovider"],
        env={**os.environ, "OMP_NUM_THREADS": "1", **environment},
        capture_output=True,
        text=True,
    )
    assert result.returncode == 0, result.stdout + result.stderr
    return result.stdout


def test_the_chunk_kernels_equal_the_reference():
    assert run("chunk_scan_cases.py", TRITON_INTERPRET="1").count(".") > 30


def test_the_chunk_kernels_compile_for_hopper():
    assert "2 passed" in run("chunk_scan_compiled.py")
