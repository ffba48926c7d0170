"""PEFT's default targets, by family, also for attached models."""

from __future__ import annotations

import sys

from ahn.io.keys import PREFIX
from ahn.modeling.auto_classes import MODEL_TYPES

CONSTANTS = "peft.utils.constants"


def add_peft_defaults() -> None:
    """Give PEFT's tables an entry for `ahn_X` beside that for each family X.

    Nothing happens before PEFT is imported. PEFT looks a family up in them right after it has asked
    the config for its values, which is when this is called.
    """
    module = sys.modules.get(CONSTANTS)
    for table in () if module is None else vars(module).values():
        if isinstance(table, dict):
            for family in table.keys() & MODEL_TYPES:
                table.setdefault(PREFIX + family, table[family])
