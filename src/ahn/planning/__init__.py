"""What a model with a memory needs, from its config alone, and what fits on a GPU."""

from ahn.planning.costs import Plan, plan
from ahn.planning.decoder import Decoder
from ahn.planning.gpus import GPUS, Gpu

__all__ = ["GPUS", "Decoder", "Gpu", "Plan", "plan"]
