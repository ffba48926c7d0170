"""The lm-eval model `ahn`: base and memory, any context length, bounded memory."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Sequence
from typing import Any

import torch
from lm_eval.api.registry import register_model
from lm_eval.models.huggingface import HFLM
from lm_eval.models.utils import normalize_gen_kwargs
from lm_eval.models.utils_hf import get_dtype
from tqdm import tqdm
from transformers import PreTrainedModel

from ahn.checkpoint.named_models import evaluation_dtype, resolve
from ahn.evaluation.lm.loading import at_least_one, check_method, load_model, pick_device
from ahn.evaluation.lm.methods import Method, method_named
from ahn.evaluation.lm.scoring import Score, score_batch, score_branches
from ahn.evaluation.lm.sequences import ScoredSequence, like_length_batches, plan_sequences
from ahn.generation import PREFILL_CHUNK_SIZE
from ahn.hf.attached_state import attached_state
from ahn.modeling.attached import AHNModelMixin

UNLIMITED = 2**40  # tokens: memory use does not depend on a sample's length
SKIPPED = "[ahn-skipped]"  # the answer to a prompt longer than max_length
SKIPPED_SCORE = (float("-inf"), False)  # the same for a continuation
UNSUPPORTED = ("peft", "delta", "autogptq", "gptqmodel", "gguf_file", "tp_plan")

log = logging.getLogger(__name__)


@register_model("ahn")
class AHNLM(HFLM):
    """lm-eval's `hf` with a memory: `--model ahn --model_args pretrained=...,memory=...`.

    Prompts are prefilled in chunks into the bounded cache, logits exist only for what is scored,
    and a text that several requests share runs through the model once. Everything else (prompts,
    stop sequences, chat templates, sampling, `accelerate launch`) is that of `hf`.

    Args:
        pretrained: folder or hub name of a base or of a merged model, one of
            `ahn.checkpoint.NAMED_MODELS`, or a model.
        memory: folder or hub name of a memory; for a named model also the cell of one of its own.
        method: one of `METHODS`: `ahn`, `full` (full attention), `window` (memory off), ...
        window, num_sinks: win over the memory's own.
        prefill_chunk_size: tokens of each prompt per forward.
        max_length: a longer sample (with room for the answer) is skipped: it is answered with
            `SKIPPED` or `SKIPPED_SCORE`, and the number of those is logged. None: no limit.
        batch_size: prompts per forward.
        device: None is the GPU, if there is one.
        hf_kwargs: as lm-eval's `hf`.

    Raises:
        ValueError: an option is unknown, or the method needs a memory and there is none.
    """

    def __init__(
        self,
        pretrained: str | PreTrainedModel,
        memory: str | None = None,
        method: str = "ahn",
        window: int | None = None,
        num_sinks: int | None = None,
        prefill_chunk_size: int = PREFILL_CHUNK_SIZE,
        max_length: int | None = None,
        batch_size: int | str = 1,
        device: str | None = None,
        **hf_kwargs: Any,
    ) -> None:
        method_named(method)
        self.method_name = method
        self.budget = {"window": window, "num_sinks": num_sinks}
        self.prefill_chunk_size = at_least_one("prefill_chunk_size", prefill_chunk_size)
        at_least_one("max_length", 1 if max_length is None else max_length)
        at_least_one("batch_size", batch_size)
        if isinstance(pretrained, str):
            hf_kwargs["dtype"] = evaluation_dtype(pretrained, hf_kwargs.get("dtype", "auto"))
            base, memory = resolve(pretrained, memory)
            pretrained = str(base)
            hf_kwargs["device"] = pick_device(device)
        else:
            check_method(pretrained, method)
        self.memory = memory
        self.on_batch: Callable[[dict[str, Any]], None] | None = None  # gets each batch's cost
        super().__init__(
            pretrained,
            backend="causal",
            max_length=max_length,
            batch_size=int(batch_size),
            **hf_kwargs,
        )
        if hasattr(self, "accelerator"):  # of all nodes, and on CPUs too
            self._rank = self.accelerator.process_index
            self._world_size = self.accelerator.num_processes

    @property
    def method(self) -> Method:
        """How the model looks back; set `method_name` to change it between two calls."""
        return method_named(self.method_name)

    @property
    def max_length(self) -> int:
        """The given one, or a number that no sample reaches."""
        return self._max_length or UNLIMITED

    def _create_model(self, pretrained: str, **options: Any) -> None:
        for name in UNSUPPORTED:
            if options.pop(name, None):
                raise ValueError(f"{name}: expected none with --model ahn, got one")
        placing = ("parallelize", "max_memory_per_gpu", "max_cpu_memory", "offload_folder", "gpus")
        places = self._get_accelerate_args(
            device_map=options.pop("device_map", None),
            **{name: options.pop(name) for name in placing if name in options},
        )
        options["dtype"] = get_dtype(options.get("dtype") or "auto")
        options = {name: value for name, value in options.items() if value not in (None, "")}
        self._model = load_model(
            pretrained, self.memory, self.method_name, **self.budget, **options, **places
        )
        self._config = self._model.config

    def loglikelihood_rolling(self, requests: list[Any], disable_tqdm: bool = False) -> list[float]:
        """Nats of each text as one sequence, however long it is."""
        texts = [request.args[0] for request in requests]
        pairs = [([self.prefix_token_id], self.tok_encode(text)) for text in texts]

        def save(index: int, answer: tuple[float, bool]) -> None:
            self.cache_hook.add_partial("loglikelihood_rolling", (texts[index],), answer[0])

        return [nats for nats, _ in self._score(pairs, save, disable_tqdm)]

    def _loglikelihood_tokens(
        self,
        requests: list[tuple[tuple[str, str], list[int], list[int]]],
        disable_tqdm: bool = False,
        override_bs: int | None = None,
    ) -> list[tuple[float, bool]]:
        def save(index: int, answer: tuple[float, bool]) -> None:
            self.cache_hook.add_partial("loglikelihood", requests[index][0], answer)

        return self._score([request[1:] for request in requests], save, disable_tqdm)

    def _score(
        self,
        pairs: Sequence[tuple[list[int], list[int]]],
        save: Callable[[int, tuple[float, bool]], None],
        disable_tqdm: bool,
    ) -> list[tuple[float, bool]]:
        """Nats and greediness of each continuation; `save` gets each as soon as it is known."""
        answers = [SKIPPED_SCORE] * len(pairs)
        lengths = [len(context) + len(rest) - 1 for context, rest in pairs]
        fits = [i for i, length in enumerate(lengths) if length <= self.max_length]
        self._report_skipped(len(pairs) - len(fits), len(pairs))
        sequences = plan_sequences([pairs[i] for i in fits])
        total = sum(map(len, sequences))
        with (
            tqdm(total=total, unit="tok", desc=self.method_name,
                 disable=True if disable_tqdm or self.rank else None) as bar,
            self.method.context(self.model),
        ):  # fmt: skip
            for batch in like_length_batches(sequences, self.batch_size):
                started = time.perf_counter()
                scores, size = self._score_batch(batch)
                for index, score in scores.items():
                    answers[fits[index]] = (score.loglikelihood, score.is_greedy)
                    save(fits[index], answers[fits[index]])
                bar.update(sum(map(len, batch)))
                self._note(
                    (len(batch), len(batch[0])), time.perf_counter() - started, cache_bytes=size
                )
        return answers

    def _note(self, shape: tuple[int, ...], seconds: float, **facts: Any) -> None:
        """Report what a batch of so many rows and tokens took."""
        if self.on_batch is not None:
            rows, tokens = shape
            cost = {"rows": rows, "tokens": tokens, "seconds": round(seconds, 4), **facts}
            if self.device.type == "cuda":
                cost["peak_bytes"] = torch.cuda.max_memory_allocated(self.device)
                torch.cuda.reset_peak_memory_stats(self.device)
            self.on_batch(cost)

    def _score_batch(self, batch: list[ScoredSequence]) -> tuple[dict[int, Score], int]:
        options: dict[str, Any] = {
            "prefill_chunk_size": self.prefill_chunk_size,
            "dtype": self.softmax_dtype,
        }
        change = self.method.change
        if change is None and not any(sequence.branches for sequence in batch):
            return score_batch(self.model, batch, **options)
        alone = [score_branches(self.model, each, change=change, **options) for each in batch]
        return {k: v for scores, _ in alone for k, v in scores.items()}, max(x for _, x in alone)

    def generate_until(self, requests: list[Any], disable_tqdm: bool = False) -> list[str]:
        """As `hf`, with prefill in chunks; prompts longer than `max_length` are skipped."""
        if self.method.change is not None:
            raise ValueError(
                f"method {self.method_name}: expected tasks that score continuations, got one "
                "that generates"
            )
        fits = [i for i, request in enumerate(requests) if self._prompt_fits(*request.args)]
        self._report_skipped(len(requests) - len(fits), len(requests))
        answers = [SKIPPED] * len(requests)
        chosen = [requests[i] for i in fits]
        generated = super().generate_until(chosen, disable_tqdm) if fits else []
        for index, answer in zip(fits, generated, strict=True):
            answers[index] = answer
        return answers

    def _prompt_fits(self, context: str, gen_kwargs: dict[str, Any]) -> bool:
        if self._max_length is None:
            return True
        room = self.max_length - normalize_gen_kwargs(gen_kwargs, self.max_gen_toks)["max_gen_toks"]
        return len(self.tok_encode(context)) <= room

    def _report_skipped(self, count: int, total: int) -> None:
        if count:
            log.warning(
                "max_length: expected samples of at most %d tokens, skipped %d of %d that are "
                "longer", self.max_length, count, total,
            )  # fmt: skip

    def _model_generate(self, context: Any, *args: Any, **kwargs: Any) -> Any:
        started = time.perf_counter()
        with self.method.context(self.model):
            answer = super()._model_generate(
                context, *args, prefill_chunk_size=self.prefill_chunk_size, **kwargs
            )
        generated = answer.shape[1] - context.shape[1]
        self._note(tuple(context.shape), time.perf_counter() - started, generated=generated)
        return answer

    def get_model_info(self) -> dict[str, Any]:
        """As `hf`, and how the model looks back."""
        info: dict[str, Any] = {
            "method": self.method_name,
            "memory": self.memory and str(self.memory),
        }
        if isinstance(self.model, AHNModelMixin):
            info["ahn_config"] = attached_state(self.model).config.to_dict()
        return {**super().get_model_info(), **info}
