"""Attached models: attach, detach, modes, classes, saving."""

from ahn.modeling.attached import attached_classes
from ahn.modeling.attachment import attach, compressive, detach, disabled, memory_off
from ahn.modeling.auto_classes import auto_class
from ahn.modeling.registration import family_classes

__all__ = [
    "attach",
    "attached_classes",
    "auto_class",
    "compressive",
    "detach",
    "disabled",
    "family_classes",
    "memory_off",
]
