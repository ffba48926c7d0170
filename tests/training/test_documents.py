"""The document of training: its Python runs as it stands."""

from __future__ import annotations

import re
from pathlib import Path

from ahn.training.losses import registry
from tiny_models import new_model, random_ids

DOCUMENT = Path(__file__).parents[2] / "docs" / "training.md"


def test_its_python_runs(monkeypatch):
    """And trains with the loss that it registers."""
    monkeypatch.setattr(registry, "_LOSSES", dict(registry._LOSSES))
    (code,) = re.findall(r"```python\n(.*?)```", DOCUMENT.read_text(), re.DOTALL)
    names = {"model": new_model()}
    exec(code, names)
    output = names["distiller"](random_ids(60), window=16, num_sinks=4)
    assert output.sums["reverse_kl"] > 0
    output.loss.backward()
