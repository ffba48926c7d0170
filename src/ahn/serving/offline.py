"""Answers of vLLM's engine to many prompts at once, without a server."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any


@dataclass(frozen=True)
class Sampling:
    """How an answer is made; see `ahn.generation.stream`.

    Attributes:
        seed: None draws other numbers each time.
    """

    max_new_tokens: int
    temperature: float = 0.0
    top_k: int = 0
    top_p: float = 1.0
    seed: int | None = None


def answers(
    folder: Path, prompts: Sequence[Sequence[int]], sampling: Sampling, dtype: str = "auto"
) -> Iterator[tuple[int, str]]:
    """Index and text of each answer, as soon as it is whole.

    Prompts may be of any length: the longest one says how far the engine's positions reach.

    Args:
        folder: of a base with its memory, see `ahn.serving.limits.check_served`.
        prompts: token ids, at least one of each.

    Raises:
        ValueError: what vLLM says of a folder or prompt that it cannot take.
    """
    engine = _engine(folder, dtype, max(map(len, prompts)) + sampling.max_new_tokens)
    try:
        for index, prompt in enumerate(prompts):
            engine.add_request(str(index), {"prompt_token_ids": list(prompt)}, _params(sampling))
        while engine.has_unfinished_requests():
            for output in engine.step():
                yield int(output.request_id.partition("-")[0]), output.outputs[0].text
    finally:
        engine.engine_core.shutdown()


def _engine(folder: Path, dtype: str, length: int) -> Any:
    """The engine, for texts of at most `length` tokens."""
    from vllm.engine.arg_utils import EngineArgs
    from vllm.v1.engine.llm_engine import LLMEngine

    return LLMEngine.from_engine_args(
        EngineArgs(model=str(folder), dtype=dtype, max_model_len=length)
    )


def _params(sampling: Sampling) -> Any:
    """vLLM's name for each setting; whole answers alone are given back."""
    from vllm import SamplingParams
    from vllm.sampling_params import RequestOutputKind

    return SamplingParams(
        max_tokens=sampling.max_new_tokens,
        temperature=sampling.temperature,
        top_k=sampling.top_k,
        top_p=sampling.top_p,
        seed=sampling.seed,
        output_kind=RequestOutputKind.FINAL_ONLY,
    )
