"""The lm-eval model `ahn`: importing this package registers it. Needs the extra `ahn[eval]`."""

from ahn.evaluation.lm.methods import METHODS, Method
from ahn.evaluation.lm.model import AHNLM
from ahn.evaluation.lm.skipping import SKIPPED, SKIPPED_SCORE

__all__ = ["AHNLM", "METHODS", "SKIPPED", "SKIPPED_SCORE", "Method"]
