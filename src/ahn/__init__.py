"""A bounded memory for long context, for any Hugging Face decoder."""

from typing import TYPE_CHECKING

from ahn.startup import end_quietly_on_interrupt, lazy_names, started_as_program
from ahn.versions import warn_of_untried_versions

__version__ = "0.1.0"

if TYPE_CHECKING:
    from ahn import (
        bench,
        checkpoint,
        cost,
        embedded,
        evaluation,
        generation,
        plots,
        session,
        training,
    )
    from ahn.checkpoint import from_pretrained, save_pretrained
    from ahn.config import AHNConfig
    from ahn.hf import UnsupportedModel, use_liger
    from ahn.layer.cache import AHNCache
    from ahn.modeling import attach, detach, disabled, memory_off
    from ahn.session import Session
else:
    __getattr__, __dir__ = lazy_names(
        __name__,
        {
            "AHNCache": "ahn.layer.cache",
            "AHNConfig": "ahn.config",
            "Session": "ahn.session",
            "UnsupportedModel": "ahn.hf",
            "attach": "ahn.modeling",
            "bench": "ahn.bench",
            "checkpoint": "ahn.checkpoint",
            "cost": "ahn.cost",
            "detach": "ahn.modeling",
            "disabled": "ahn.modeling",
            "embedded": "ahn.embedded",
            "evaluation": "ahn.evaluation",
            "from_pretrained": "ahn.checkpoint",
            "generation": "ahn.generation",
            "memory_off": "ahn.modeling",
            "plots": "ahn.plots",
            "save_pretrained": "ahn.checkpoint",
            "session": "ahn.session",
            "training": "ahn.training",
            "use_liger": "ahn.hf",
        },
    )

if started_as_program():
    end_quietly_on_interrupt()
else:
    # Registers the model types `ahn_*`: a merged folder loads by the Auto classes from now on.
    from ahn import modeling  # noqa: F401

    warn_of_untried_versions()

__all__ = [
    "AHNCache",
    "AHNConfig",
    "Session",
    "UnsupportedModel",
    "attach",
    "bench",
    "checkpoint",
    "cost",
    "detach",
    "disabled",
    "embedded",
    "evaluation",
    "from_pretrained",
    "generation",
    "memory_off",
    "plots",
    "save_pretrained",
    "session",
    "training",
    "use_liger",
]
