"""Memories and merged models on disk and on the hub: load, save, merge, split, compare."""

from typing import TYPE_CHECKING

from ahn.startup import lazy_names

if TYPE_CHECKING:
    from ahn.checkpoint.compare import diff
    from ahn.checkpoint.hub import push_to_hub
    from ahn.checkpoint.inspection import inspect
    from ahn.checkpoint.load import from_pretrained, has_memory, load_tokenizer
    from ahn.checkpoint.memory import StoredMemory, read_memory, save_pretrained
    from ahn.checkpoint.merging import merge
    from ahn.checkpoint.named_models import NAMED_MODELS
    from ahn.checkpoint.splitting import split
else:
    __getattr__, __dir__ = lazy_names(
        __name__,
        {
            "NAMED_MODELS": "ahn.checkpoint.named_models",
            "StoredMemory": "ahn.checkpoint.memory",
            "diff": "ahn.checkpoint.compare",
            "from_pretrained": "ahn.checkpoint.load",
            "has_memory": "ahn.checkpoint.load",
            "inspect": "ahn.checkpoint.inspection",
            "load_tokenizer": "ahn.checkpoint.load",
            "merge": "ahn.checkpoint.merging",
            "push_to_hub": "ahn.checkpoint.hub",
            "read_memory": "ahn.checkpoint.memory",
            "save_pretrained": "ahn.checkpoint.memory",
            "split": "ahn.checkpoint.splitting",
        },
    )

__all__ = [
    "NAMED_MODELS",
    "StoredMemory",
    "diff",
    "from_pretrained",
    "has_memory",
    "inspect",
    "load_tokenizer",
    "merge",
    "push_to_hub",
    "read_memory",
    "save_pretrained",
    "split",
]
