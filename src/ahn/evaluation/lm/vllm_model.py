"""The lm-eval model `ahn-vllm`: a merged folder in vLLM's engine, many samples at once."""

from __future__ import annotations

from functools import partial
from pathlib import Path
from typing import Any

import torch
from lm_eval.api.registry import register_model
from lm_eval.models.vllm_causallms import VLLM

from ahn.evaluation.lm.skipping import SKIPPED, SKIPPED_SCORE, fitting_prompts, with_skipped
from ahn.serving.folders import checked_folder
from ahn.serving.limits import check_served


@register_model("ahn-vllm")
class AHNVLLM(VLLM):
    """lm-eval's `vllm`, which skips what is too long where that one would cut it.

    Args:
        pretrained: a folder of `ahn merge`.
        max_length: tokens of the longest sample, its answer included; longer ones are answered with
            `SKIPPED` or `SKIPPED_SCORE`, and their number is logged. None is what the base was
            trained on.
        options: as lm-eval's `vllm`.

    Raises:
        ValueError: the folder is damaged, has no memory, or one that vLLM cannot serve.
    """

    memory = None  # it is in the folder

    def __init__(self, pretrained: str, max_length: int | None = None, **options: Any) -> None:
        config, self.settings = checked_folder(Path(pretrained))
        check_served(config)
        options.setdefault("batch_size", "auto")
        super().__init__(pretrained, max_length=max_length, **options)

    def look_back(self, method: str) -> None:
        """ValueError for all but the memory: the engine's model cannot leave it out."""
        if method != "ahn":
            raise ValueError(f"method: expected ahn with vLLM, got {method}")

    @property
    def device(self) -> torch.device:
        """Where the engine computes."""
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")

    def loglikelihood_rolling(self, requests: list[Any], disable_tqdm: bool = False) -> list[float]:
        """Nats of each text as one sequence."""
        texts = [request.args[0] for request in requests]
        scored = self._loglikelihood_tokens(
            [(None, [self.prefix_token_id], self.tok_encode(text)) for text in texts], disable_tqdm
        )
        for text, (nats, _) in zip(texts, scored):
            self.cache_hook.add_partial("loglikelihood_rolling", (text,), nats)
        return [nats for nats, _ in scored]

    def _loglikelihood_tokens(
        self, requests: list[Any], disable_tqdm: bool = False
    ) -> list[tuple[float, bool]]:
        lengths = [len(context) + len(rest) for _, context, rest in requests]
        fits = [i for i, length in enumerate(lengths) if length < self.max_length]
        ask = partial(super()._loglikelihood_tokens, disable_tqdm=True)
        return with_skipped(self, fits, requests, SKIPPED_SCORE, ask)

    def generate_until(self, requests: list[Any], disable_tqdm: bool = False) -> list[str]:
        """As `vllm`; prompts without room for their answer are skipped."""
        ask = partial(super().generate_until, disable_tqdm=True)
        return with_skipped(self, fitting_prompts(self, requests), requests, SKIPPED, ask)
