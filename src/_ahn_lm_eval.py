"""Make the model `ahn` known to lm-eval's own command line: `lm_eval --model ahn ...`.

lm-eval 0.4.13 looks for no plug-ins: a model is known once its module was imported, and nothing of
its command line imports one. So `_ahn_lm_eval.pth`, beside this file, imports this module at the
start of an interpreter that runs lm-eval, and of no other. Here nothing is imported yet: once
lm-eval has listed its models, `ahn` is added by name; the package itself loads if it is asked for.
"""

from __future__ import annotations

import sys
from importlib.abc import MetaPathFinder
from importlib.machinery import PathFinder
from types import ModuleType
from typing import Any

MODELS = "lm_eval.models"  # fills the registry when it is imported
NAME, TARGET = "ahn", "ahn.evaluation.lm.model:AHNLM"


class ModelsFinder(MetaPathFinder):
    """Finds lm-eval's module as Python would, and adds the model when it has run."""

    def find_spec(self, fullname: str, path: Any = None, target: ModuleType | None = None) -> Any:
        if fullname != MODELS:
            return None
        sys.meta_path.remove(self)
        spec = PathFinder.find_spec(fullname, path)
        if spec is not None and spec.loader is not None:
            execute = spec.loader.exec_module

            def execute_and_add(module: ModuleType) -> None:
                execute(module)
                _add()

            spec.loader.exec_module = execute_and_add  # type: ignore[method-assign]
        return spec


def _add() -> None:
    from lm_eval.api.registry import model_registry

    if NAME not in model_registry:
        model_registry.register(NAME, target=TARGET)


sys.meta_path.insert(0, ModelsFinder())
