"""Token ids that a base knows: a tokenizer may be larger than the base that it stands beside."""

from __future__ import annotations

from typing import Any


def check_token_ids(largest: int, model: Any) -> None:
    """Raise ValueError where the largest id of a text is none of the base's.

    PyTorch would say that an index is out of range, and on a GPU end the process.
    """
    rows = getattr(model.get_input_embeddings(), "num_embeddings", None)
    if rows is not None and largest >= rows:
        raise ValueError(
            f"tokens: expected ids below {rows}, the size of the base's vocabulary, got {largest} "
            "(is the tokenizer larger than the base?)"
        )
