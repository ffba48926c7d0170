"""What is put into a Hugging Face decoder: hooks, cells, kernels of the base."""

from ahn.hf.liger import drop_liger, use_liger, uses_liger
from ahn.hf.support import UnsupportedModel

__all__ = ["UnsupportedModel", "drop_liger", "use_liger", "uses_liger"]
