"""Attached models: attach, detach, modes, classes, saving."""

from ahn.modeling.attached import attached_classes, attached_config, family_classes, register_family
from ahn.modeling.attachment import attach, compressive, detach, disabled, memory_off

__all__ = [
    "attach",
    "attached_classes",
    "attached_config",
    "compressive",
    "detach",
    "disabled",
    "family_classes",
    "memory_off",
    "register_family",
]
