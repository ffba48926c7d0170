"""The memories' recurrences over chunks of 64 tokens, by Triton kernels, with gradients.

What of a chunk needs no state is made for all chunks at once: its factors and two matrices
(`text`). Then the state is carried to where segments start (`segments`), which are read in
parallel (`forward`). Gradients are carried back the same way (`backward`).
"""

from ahn.ops.chunk_scan.api import scan
from ahn.ops.chunk_scan.text import Rule

__all__ = [
    "Rule",
    "scan",
]
