"""Memories and merged models on disk and on the hub: load, save, merge, split, compare."""

from ahn.checkpoint.compare import diff, inspect
from ahn.checkpoint.hub import push_to_hub
from ahn.checkpoint.load import from_pretrained, has_memory
from ahn.checkpoint.memory import StoredMemory, read_memory, save_pretrained
from ahn.checkpoint.merging import merge
from ahn.checkpoint.names import EMBEDDED, EMBEDDED_FOLDER
from ahn.checkpoint.splitting import split

__all__ = [
    "EMBEDDED",
    "EMBEDDED_FOLDER",
    "StoredMemory",
    "diff",
    "from_pretrained",
    "has_memory",
    "inspect",
    "merge",
    "push_to_hub",
    "read_memory",
    "save_pretrained",
    "split",
]
