"""A bounded memory for long context, for any Hugging Face decoder."""

from ahn import embedded, generation
from ahn.checkpoint import from_pretrained, save_pretrained
from ahn.config import AHNConfig
from ahn.layer.cache import AHNCache
from ahn.modeling import attach, detach, disabled, memory_off

__version__ = "0.1.0"

__all__ = [
    "AHNCache",
    "AHNConfig",
    "attach",
    "detach",
    "disabled",
    "embedded",
    "from_pretrained",
    "generation",
    "memory_off",
    "save_pretrained",
]
