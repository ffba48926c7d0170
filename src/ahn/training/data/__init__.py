"""Data of a training run: sources, their formats, tokens, packed rows, batches."""

from ahn.training.data.collate import Collator
from ahn.training.data.preparation import DataArguments, prepare

__all__ = ["Collator", "DataArguments", "prepare"]
