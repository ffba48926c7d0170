"""Places that may not be written: one clear line, and nothing is left there."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
from pathlib import Path

import pytest

from checkpoint_folders import save_base, save_memory

AS_NOBODY = """
import io, json, os, sys
from contextlib import redirect_stderr, redirect_stdout, suppress
import ahn
from ahn.checkpoint import merge, split
from ahn.cli import app
from tiny_models import shared_model
base, memory, merged, out = sys.argv[1:]
model = shared_model()
with suppress(SystemExit), redirect_stdout(None):  # nobody may not read the interpreter's
    app(["merge", base, memory, merged], prog_name="ahn")  # modules: all are imported before
os.setgid(65534), os.setuid(65534)
said = {}
for name, write in {
    "merge": lambda: merge(base, memory, out),
    "split": lambda: split(merged, out),
    "memory": lambda: ahn.save_pretrained(model, out),
    "model": lambda: model.save_pretrained(out),
}.items():
    try:
        write()
    except OSError as error:
        said[name] = [type(error).__name__, error.filename]
for name, arguments in {"merge": [base, memory], "split": [merged]}.items():
    with redirect_stderr(io.StringIO()) as errors:
        try:
            app([name, *arguments, out], prog_name="ahn")
        except SystemExit as end:
            said["ahn " + name] = [end.code, errors.getvalue()]
print(json.dumps(said))
"""


@pytest.mark.slow
@pytest.mark.skipif(not hasattr(os, "setuid") or os.geteuid() != 0, reason="needs root to drop it")
@pytest.mark.parametrize("place", ["new", "there"])
def test_a_place_without_permission_is_one_line_and_stays_empty(place):
    with tempfile.TemporaryDirectory() as name:  # pytest's own are closed to nobody
        root = Path(name)
        base, memory = save_base(root / "base"), save_memory(root / "memory")
        merged, locked = root / "merged", root / "locked"
        locked.mkdir()
        out = locked / "out" if place == "new" else locked
        for path in (root, *root.rglob("*")):
            path.chmod(0o755 if path.is_dir() else 0o644)
        root.chmod(0o777)  # where a locked folder could be replaced by renaming another
        result = subprocess.run(
            [sys.executable, "-c", AS_NOBODY, *map(str, (base, memory, merged, out))],
            capture_output=True, text=True,
            env={"PYTHONPATH": ":".join(sys.path), "HF_HUB_OFFLINE": "1"},
        )  # fmt: skip
        assert result.returncode == 0, result.stderr
        said = json.loads(result.stdout)
        assert said.keys() == {"merge", "split", "memory", "model", "ahn merge", "ahn split"}
        for writer, (kind, what) in said.items():
            if writer.startswith("ahn "):
                assert kind == 2 and what.count("\n") == 1
                reasons = ("Permission denied", "expected a folder that can be written")
                assert str(out) in what and any(reason in what for reason in reasons), what
            else:
                assert kind == "PermissionError" and what.startswith(str(out))
        assert not list(locked.iterdir())
        assert {path.name for path in root.iterdir()} == {"base", "memory", "merged", "locked"}
