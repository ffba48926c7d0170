"""The small base model and memories that ship with the package, and the recipe that made them."""

from __future__ import annotations

from typing import TYPE_CHECKING

from ahn.checkpoint.named_models import EMBEDDED, NAMED_MODELS

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

BASE = NAMED_MODELS[EMBEDDED].base_folder()
MEMORIES = NAMED_MODELS[EMBEDDED].memories_folder()


def load(
    memory: str | None = None, *, window: int | None = None, num_sinks: int | None = None
) -> tuple[PreTrainedModel, PreTrainedTokenizerBase]:
    """The embedded model in float32, and its tokenizer.

    Args:
        memory: a shipped memory (`Slots`, `GatedDeltaNet-Slots`, `GatedDeltaNet`, `DeltaNet`); None
            is the base.
        window, num_sinks: win over the memory's own settings.

    Raises:
        ValueError: no memory of that name is shipped.
    """
    from ahn.checkpoint import from_pretrained, load_tokenizer

    dtype = NAMED_MODELS[EMBEDDED].dtype
    model = from_pretrained(EMBEDDED, memory, window=window, num_sinks=num_sinks, dtype=dtype)
    return model, load_tokenizer(EMBEDDED)
