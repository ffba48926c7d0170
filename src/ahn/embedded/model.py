"""The small base model and memories that ship with the package, and the recipe that made them."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

NAME = "embedded"  # the word that stands for this model wherever a model is named
BASE = Path(__file__).parent / "base"
MEMORIES = Path(__file__).parent / "memories"


def memory_folder(memory: str) -> Path:
    """Folder of a shipped memory by the name of its cell.

    Raises ValueError that lists the shipped ones.
    """
    shipped = sorted(path.name for path in MEMORIES.iterdir() if path.is_dir())
    if memory not in shipped:
        raise ValueError(f"memory: expected one of {', '.join(shipped)}, got {memory!r}")
    return MEMORIES / memory


def load(
    memory: str | None = None, *, window: int | None = None, num_sinks: int | None = None
) -> tuple[PreTrainedModel, PreTrainedTokenizerBase]:
    """The embedded model in float32, and its tokenizer.

    Args:
        memory: cell of a shipped memory (`GatedDeltaNet`, `DeltaNet`, `Mamba2`); None is the base.
        window, num_sinks: win over the memory's own settings.

    Raises:
        ValueError: no memory of that name is shipped.
    """
    import torch
    from transformers import AutoTokenizer

    from ahn.checkpoint import from_pretrained

    model = from_pretrained(
        BASE,
        None if memory is None else memory_folder(memory),
        window=window,
        num_sinks=num_sinks,
        dtype=torch.float32,
    )
    return model.eval(), AutoTokenizer.from_pretrained(BASE)
