"""Data of a training run: where it comes from, its formats, tokenizing, packing, batches."""

from ahn.training.data.collate import Collator
from ahn.training.data.preparation import DataArguments, prepare

__all__ = ["Collator", "DataArguments", "prepare"]
