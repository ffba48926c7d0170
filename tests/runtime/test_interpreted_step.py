"""Law: the fused step equals the general path, by Triton's interpreter in its own process."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest


@pytest.mark.timeout(1200)
def test_the_fused_step_equals_the_general_path():
    pytest.importorskip("triton")
    cases = Path(__file__).with_name("fused_step_cases.py")
    done = subprocess.run(
        [sys.executable, "-m", "pytest", "-n", "2", cases, "-p", "no:cacheprovider"],
        env={**os.environ, "OMP_NUM_THREADS": "1", "TRITON_INTERPRET": "1"},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, (done.stdout + done.stderr)[-4000:]
