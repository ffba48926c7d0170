"""transformers' Trainer for a memory: the budget of each step, losses, evaluation."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from typing import Any

import torch
from torch import Tensor
from transformers import PreTrainedTokenizerBase

from ahn.hf.attached_state import attached_state
from ahn.hf.vocabulary import check_token_ids
from ahn.layer.modes import MEMORY
from ahn.training.batch import Batch, TokenCounts, loss_tokens
from ahn.training.budget import Budget, BudgetSampler
from ahn.training.checkpoints import CheckpointTrainer
from ahn.training.data.collate import longest_document
from ahn.training.distiller import Distiller, memory_parameters
from ahn.training.fsdp2 import round_weights_alone
from ahn.training.loop import parameter_groups
from ahn.training.losses import IGNORE, averaged_over
from ahn.training.losses.registry import LOGITS
from ahn.training.meter import Meter
from ahn.training.recovered_gap import measure_gap
from ahn.training.slots import (
    SCORE_SHARE,
    SCORES,
    has_slots,
    keep_rates_positive,
    rate_parameters,
)

SHOWN_TOKENS = 24  # of a batch, in the message that its loss is not finite


class DistillTrainer(CheckpointTrainer):
    """Trains the memory of a `Distiller`; everything else is transformers' own.

    Args:
        sampler: of window and sinks of each step.
        map_rate: see `parameter_groups`.
        score_share: of the steps, see `distill`.
        record: what the run is, see `ahn.training.run_record`; checkpoints hold it.
        options: of `Trainer`.
    """

    loss_is_scaled_for_ga = True  # `compute_loss` divides by the tokens of all accumulated batches

    def __init__(
        self,
        *,
        model: Distiller,
        sampler: BudgetSampler,
        map_rate: float = 1.0,
        score_share: float = SCORE_SHARE,
        record: Mapping[str, Any] | None = None,
        **options: Any,
    ) -> None:
        self.sampler, self.map_rate, self.record = sampler, map_rate, record or {}
        self.score_share = score_share if has_slots(memory_parameters(model.model)) else 0.0
        self.meter = Meter(averaged_over(model.losses))
        super().__init__(model=model, **options)
        round_weights_alone(self.accelerator)

    def create_optimizer(self, model: Any = None) -> torch.optim.Optimizer:
        """TrainingArguments' optimizer of the memory, see `parameter_groups`."""
        if self.optimizer is None:
            distiller = self.model if model is None else model
            parameters = memory_parameters(self.accelerator.unwrap_model(distiller).model)
            groups = parameter_groups(
                parameters,
                self.args.learning_rate,
                self.map_rate,
                self.args.weight_decay,
            )
            kind, options = self.get_optimizer_cls_and_kwargs(self.args, None)
            self.optimizer = kind([group for group in groups if group["params"]], **options)
            keep_rates_positive(self.optimizer, rate_parameters(parameters).values())
        return self.optimizer

    def get_batch_samples(
        self, epoch_iterator: Iterator, num_batches: int, device: torch.device
    ) -> tuple[list, None]:
        """The batches of a step, each with its budget and with the tokens to average over."""
        batches, _ = super().get_batch_samples(epoch_iterator, num_batches, device)
        total = torch.zeros(2, dtype=torch.float64, device=device)
        for batch, length in zip(batches, self._lengths(batches, device)):
            check_token_ids(int(batch["input_ids"].max()), self.attached)
            batch["budget"] = self.sampler.draw(self.state.global_step, length)
            batch["batch_counts"] = loss_tokens(_batch(batch), batch["budget"].tokens).counts()
            total += total.new_tensor(batch["batch_counts"])
        step_counts = TokenCounts(*self._reduced(total).tolist())
        return [{**batch, "step_counts": step_counts} for batch in batches], None

    def _lengths(self, batches: list, device: torch.device) -> list[int]:
        """Tokens of the longest document of each batch, the smallest over all processes.

        So all processes draw the same budget, and each has tokens beyond it.
        """
        lengths = torch.tensor([[longest_document(batch) for batch in batches]], device=device)
        return self.accelerator.gather(lengths).amin(0).tolist()

    def _prepare_input(self, data: Any) -> Any:
        return data if isinstance(data, (Budget, TokenCounts)) else super()._prepare_input(data)

    def compute_loss(
        self,
        model: Any,
        inputs: dict[str, Any],
        return_outputs: bool = False,
        num_items_in_batch: Any = None,
    ) -> Any:
        """A batch's share of the mean loss of the step; raises where it is not finite."""
        batch, budget = _batch(inputs), inputs["budget"]
        mode = SCORES if self._fits_scores() else MEMORY.name
        output = model(
            batch.input_ids, batch.labels, batch.position_ids, mode=mode,
            window=budget.window, num_sinks=budget.num_sinks, counts=inputs["step_counts"],
        )  # fmt: skip
        if not math.isfinite(output.loss.item()):
            raise ValueError(self._not_finite("loss", output.loss.item(), batch))
        if mode == SCORES:
            share = max(1.0, inputs["batch_counts"].labelled)
            output = output._replace(loss=output.loss * share / inputs["step_counts"].of(LOGITS))
        else:
            self.meter.add(output, inputs["batch_counts"], batch.input_ids.numel())
        loss = output.loss * self.accelerator.num_processes  # gradients are averaged over them
        return (loss, output) if return_outputs else loss

    def _fits_scores(self) -> bool:
        """Whether this step fits the scores of slots to later use, before the choice is trained."""
        return self.state.global_step < round(self.score_share * self.state.max_steps)

    def _clip_grad_norm(self, model: Any) -> Any:
        norm = super()._clip_grad_norm(model)
        value = float(norm.full_tensor() if hasattr(norm, "full_tensor") else norm)
        if not math.isfinite(value):
            raise ValueError(self._not_finite("gradient", value, None))
        return norm

    def _not_finite(self, what: str, value: float, batch: Batch | None) -> str:
        """One line that names the step and how its batch begins."""
        begins = "" if batch is None else f", in the batch that begins with {self._start(batch)!r}"
        return (
            f"{what}: expected a finite number, got {value} at step {self.state.global_step + 1}"
            f"{begins}; the checkpoints before it are whole"
        )

    def _start(self, batch: Batch) -> Any:
        """First tokens of a batch, decoded where there is a tokenizer."""
        ids, tokenizer = batch.input_ids[0, :SHOWN_TOKENS].tolist(), self.processing_class
        return tokenizer.decode(ids) if isinstance(tokenizer, PreTrainedTokenizerBase) else ids

    def log(self, logs: dict[str, float], start_time: float | None = None) -> None:
        """Log as Trainer does, with the meter's means added."""
        if "learning_rate" in logs and self.is_in_train:
            logs = {**logs, **self.meter.flush(self._reduced)}
        super().log(logs, start_time)

    def evaluate(
        self, eval_dataset: Any = None, ignore_keys: Any = None, metric_key_prefix: str = "eval"
    ) -> dict[str, float]:
        """Measure the gap that the memory recovers with its attached budget, see `measure_gap`.

        Raises ValueError where no labelled token lies beyond the attached budget.
        """
        batches = self._evaluated_batches(self.get_eval_dataloader(eval_dataset))
        config = attached_state(self.attached).config
        model = self.model_wrapped if self.is_in_train else self.model
        with self.meter.paused():
            gap = measure_gap(
                model, batches, Budget(config.window, config.num_sinks), self._reduced
            )
        metrics = {f"{metric_key_prefix}_{name}": value for name, value in gap.items()}
        self.log(metrics)
        self.control = self.callback_handler.on_evaluate(
            self.args, self.state, self.control, metrics
        )
        return metrics

    def _evaluated_batches(self, loader: Any) -> Iterator[Batch]:
        """Batches in which each row has labels once.

        The last batch repeats rows so that every process gets as many; those lose their labels.
        """
        for inputs in loader:
            batch, state = _batch(inputs), self.accelerator.gradient_state
            check_token_ids(int(batch.input_ids.max()), self.attached)
            if state.end_of_dataloader and state.remainder > 0 and batch.labels is not None:
                before = self.args.process_index * len(batch.input_ids)
                batch.labels[max(0, state.remainder - before) :] = IGNORE
            yield batch

    def _save_checkpoint(self, model: Any, trial: Any) -> None:
        with self.meter.paused():
            super()._save_checkpoint(model, trial)

    def _reduced(self, values: Tensor) -> Tensor:
        """Summed over all processes."""
        return self.accelerator.reduce(values, "sum")


def _batch(inputs: dict[str, Any]) -> Batch:
    return Batch(inputs["input_ids"], inputs.get("labels"), inputs.get("position_ids"))
