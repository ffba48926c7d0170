"""What cell and slots of a decoder layer declare to hold: names, shapes, dtypes."""

from __future__ import annotations

from typing import Any

from ahn.memory import StateSpec

SLOTS = "ahn_slots"  # attribute of a layer, and part of its tensors' names
STATES, WRITE_INPUTS = "states", "write_inputs"


def declared_by(layer: Any) -> dict[str, dict[str, StateSpec]]:
    """`states` of each sequence and `write_inputs` of each token, by name."""
    declared: dict[str, dict[str, StateSpec]] = {STATES: {}, WRITE_INPUTS: {}}
    if (cell := getattr(layer, "ahn", None)) is not None:
        sizes = (cell.fn.num_heads, cell.fn.num_key_value_heads, cell.fn.head_dim)
        declared[STATES] |= cell.fn.state_specs(*sizes)
        declared[WRITE_INPUTS] |= cell.fn.write_input_specs(*sizes)
    if (slots := getattr(layer, SLOTS, None)) is not None:
        declared[STATES] |= slots.state_specs()
        declared[WRITE_INPUTS] |= slots.write_input_specs()
    return declared
