"""The lm-eval model `ahn`: base and memory, any context length, bounded memory."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from functools import partial
from itertools import chain
from typing import Any

from lm_eval.api.registry import register_model
from lm_eval.models.huggingface import HFLM
from lm_eval.models.utils_hf import get_dtype
from transformers import PreTrainedModel

from ahn.checkpoint.named_models import evaluation_dtype, resolve
from ahn.config import AHNConfig
from ahn.evaluation.lm import skipping
from ahn.evaluation.lm.loading import (
    at_least_one,
    check_method,
    check_tokens,
    largest_batch,
    load_model,
    pick_device,
)
from ahn.evaluation.lm.methods import Method, method_named
from ahn.evaluation.lm.reporting import Shown, batch_cost
from ahn.evaluation.lm.scoring import Score, score_batch, score_branches
from ahn.evaluation.lm.sequences import ScoredSequence, like_length_batches, plan_sequences
from ahn.evaluation.lm.skipping import SKIPPED, SKIPPED_SCORE, UNLIMITED
from ahn.generation import PREFILL_CHUNK_SIZE
from ahn.hf.attached_state import attached_state
from ahn.modeling.attached import AHNModelMixin

AUTO = "auto"  # batch_size
UNSUPPORTED = ("peft", "delta", "autogptq", "gptqmodel", "gguf_file", "tp_plan")


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
        batch_size: prompts per forward, or `auto`: as many as fit, of `max_batch_size` at most.
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
        if batch_size != AUTO:
            at_least_one("batch_size", batch_size)
        if isinstance(pretrained, str):
            hf_kwargs["dtype"] = evaluation_dtype(pretrained, hf_kwargs.get("dtype", "auto"))
            base, memory = resolve(pretrained, memory)
            pretrained = str(base)
            hf_kwargs["device"] = pick_device(device)
        else:
            check_method(pretrained, method)
        self.memory = memory and str(memory)
        self.on_batch: Callable[[dict[str, Any]], None] | None = None  # gets each batch's cost
        self._found_rows: int | None = None
        self.shown = Shown()
        super().__init__(
            pretrained,
            backend="causal",
            max_length=max_length,
            batch_size=batch_size if batch_size == AUTO else int(batch_size),
            **hf_kwargs,
        )
        if hasattr(self, "accelerator"):  # of all nodes, and on CPUs too
            self._rank = self.accelerator.process_index
            self._world_size = self.accelerator.num_processes

    @property
    def method(self) -> Method:
        """How the model looks back; see `look_back`."""
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
        dtype = options.get("dtype") or "auto"
        try:
            options["dtype"] = get_dtype(dtype)
        except AttributeError as error:
            raise ValueError(f"dtype: expected auto or one of PyTorch's, got {dtype!r}") from error
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
        check_tokens(chain.from_iterable(chain.from_iterable(pairs)), self.model)
        lengths = [len(context) + len(rest) - 1 for context, rest in pairs]
        fits = [i for i, length in enumerate(lengths) if length <= self.max_length]
        skipping.report_skipped(len(pairs) - len(fits), len(pairs), self.max_length)
        sequences = plan_sequences([pairs[i] for i in fits])
        rows = self._detect_batch_size() if self.batch_size == AUTO else self.batch_size
        shown = self.shown.of(sum(map(len, sequences)), quiet=disable_tqdm or bool(self.rank))
        with shown, self.method.context(self.model):
            for batch in like_length_batches(sequences, rows):
                self.shown.add(self.method_name, sum(map(len, batch)))
                started = time.perf_counter()
                scores, size = self._score_batch(batch)
                for index, score in scores.items():
                    answers[fits[index]] = (score.loglikelihood, score.is_greedy)
                    save(fits[index], answers[fits[index]])
                self._note(
                    (len(batch), len(batch[0])), time.perf_counter() - started, cache_bytes=size
                )
        return answers

    def _detect_batch_size(self, requests: Any = None, pos: int = 0) -> int:
        """For `batch_size="auto"`: as many rows of `max_batch_size` as read a chunk.

        A CPU reads rows in a batch no faster than one after the other.
        """
        if self._found_rows is None:
            on_gpu = self.device.type == "cuda"
            self._found_rows = largest_batch(self, self.max_batch_size) if on_gpu else 1
        return self._found_rows

    def _note(self, shape: tuple[int, ...], seconds: float, **facts: Any) -> None:
        """Report what a batch of so many rows and tokens took."""
        if self.on_batch is not None:
            self.on_batch(batch_cost(shape, seconds, self.device, **facts))

    def _score_batch(self, batch: list[ScoredSequence]) -> tuple[dict[int, Score], int]:
        options: dict[str, Any] = {"prefill_chunk_size": self.prefill_chunk_size}
        options["dtype"] = self.softmax_dtype
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
        fits, ask = skipping.fitting_prompts(self, requests), super().generate_until
        with self.shown.of(len(fits), quiet=disable_tqdm or bool(self.rank), unit="answers"):
            ask = partial(ask, disable_tqdm=True)
            return skipping.with_skipped(self, fits, requests, SKIPPED, ask)

    def _model_generate(self, context: Any, *args: Any, **kwargs: Any) -> Any:
        started = time.perf_counter()
        check_tokens(context.flatten().tolist(), self.model)
        self.shown.add(self.method_name, len(context), f"now {context.numel():,} tokens")
        with self.method.context(self.model):
            answer = super()._model_generate(
                context, *args, prefill_chunk_size=self.prefill_chunk_size, **kwargs
            )
        generated = answer.shape[1] - context.shape[1]
        self._note(tuple(context.shape), time.perf_counter() - started, generated=generated)
        return answer

    @property
    def settings(self) -> AHNConfig | None:
        """The memory's; None of a model without one."""
        model = self.model
        return attached_state(model).config if isinstance(model, AHNModelMixin) else None

    def look_back(self, method: str) -> None:
        """Change the method between two calls; ValueError where the model cannot do it."""
        check_method(self.model, method)
        self.method_name = method

    def get_model_info(self) -> dict[str, Any]:
        """As `hf`, and how the model looks back."""
        info: dict[str, Any] = {"method": self.method_name, "memory": self.memory}
        if self.settings is not None:
            info["ahn_config"] = self.settings.to_dict()
        return {**super().get_model_info(), **info}
