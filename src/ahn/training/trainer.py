"""transformers' Trainer, for a memory: limits of each step, losses, gaps, checkpoints."""

from __future__ import annotations

import math
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from accelerate.utils import save_fsdp_optimizer
from torch import Tensor
from transformers import PreTrainedTokenizerBase, Trainer, TrainerState
from transformers.integrations.deepspeed import deepspeed_init
from transformers.trainer import SCHEDULER_NAME, TRAINER_STATE_NAME
from transformers.trainer_utils import rotate_checkpoints

from ahn.hf.attached_state import attached_state
from ahn.training import state
from ahn.training.data.collate import longest_document
from ahn.training.distillation import Batch, Counts, count
from ahn.training.distiller import Distiller, memory_parameters
from ahn.training.limits import Limits, LimitSampler
from ahn.training.loop import parameter_groups
from ahn.training.losses import IGNORE
from ahn.training.meter import Meter
from ahn.training.sharding import round_weights_alone
from ahn.training.zero3 import is_zero3

STAGING = ".saving"  # where a checkpoint is written before it takes its name


class DistillTrainer(Trainer):
    """Trains the memory of a `Distiller`; everything else is transformers' own.

    Args:
        sampler: of window and sinks of each step.
        map_rate: see `parameter_groups`.
        options: of `Trainer`.
    """

    loss_is_scaled_for_ga = True  # each loss is a share of the mean over the whole step

    def __init__(
        self, *, model: Distiller, sampler: LimitSampler, map_rate: float = 1.0, **options: Any
    ) -> None:
        self.sampler, self.map_rate, self.meter = sampler, map_rate, Meter()
        self._staging: Path | None = None
        super().__init__(model=model, **options)
        round_weights_alone(self.accelerator)

    @property
    def attached(self) -> Any:
        """The model with its memory, below all wrappers."""
        return self.accelerator.unwrap_model(self.model).model

    def create_optimizer(self, model: Any = None) -> torch.optim.Optimizer:
        """TrainingArguments' optimiser over the memory, head-wise maps with their own rate."""
        if self.optimizer is None:
            distiller = self.model if model is None else model
            groups = parameter_groups(
                memory_parameters(self.accelerator.unwrap_model(distiller).model),
                self.args.learning_rate,
                self.map_rate,
                self.args.weight_decay,
            )
            kind, options = self.get_optimizer_cls_and_kwargs(self.args, None)
            self.optimizer = kind([group for group in groups if group["params"]], **options)
        return self.optimizer

    def get_batch_samples(
        self, epoch_iterator: Iterator, num_batches: int, device: torch.device
    ) -> tuple[list, None]:
        """A step's batches, each with its limits and with what the losses are averaged over."""
        batches, _ = super().get_batch_samples(epoch_iterator, num_batches, device)
        total = torch.zeros(2, dtype=torch.float64, device=device)
        for batch, length in zip(batches, self._lengths(batches, device)):
            limits = self.sampler.draw(self.state.global_step, length)
            batch["limits"] = limits
            batch["own"] = count(_plain(batch), limits.budget)
            total += total.new_tensor(batch["own"])
        whole = Counts(*self._reduced(total).tolist())
        return [{**batch, "counts": whole} for batch in batches], None

    def _lengths(self, batches: list, device: torch.device) -> list[int]:
        """Of the batches' longest documents; the least of all processes, so that each has tokens
        beyond the budget."""
        own = torch.tensor([[longest_document(batch) for batch in batches]], device=device)
        return self.accelerator.gather(own).amin(0).tolist()

    def _prepare_input(self, data: Any) -> Any:
        return data if isinstance(data, (Limits, Counts)) else super()._prepare_input(data)

    def compute_loss(
        self,
        model: Any,
        inputs: dict[str, Any],
        return_outputs: bool = False,
        num_items_in_batch: Any = None,
    ) -> Any:
        """A batch's share of the mean loss of the step; raises where it is not finite."""
        limits, own = inputs["limits"], inputs["own"]
        batch = _plain(inputs)
        losses = model(
            batch.input_ids, batch.labels, batch.position_ids,
            window=limits.window, num_sinks=limits.num_sinks, counts=inputs["counts"],
        )  # fmt: skip
        if not math.isfinite(losses.loss.item()):
            raise ValueError(self._not_finite("loss", losses.loss.item(), batch))
        self.meter.add(losses, own, batch.input_ids.numel())
        loss = losses.loss * self.accelerator.num_processes  # gradients are averaged over them
        return (loss, losses) if return_outputs else loss

    def _clip_grad_norm(self, model: Any) -> Any:
        norm = super()._clip_grad_norm(model)
        value = float(norm.full_tensor() if hasattr(norm, "full_tensor") else norm)
        if not math.isfinite(value):
            raise ValueError(self._not_finite("gradient", value, None))
        return norm

    def _not_finite(self, what: str, value: float, batch: Batch | None) -> str:
        """One line that names the step and how its batch begins."""
        begins = "" if batch is None else f", in the batch that begins with {self._text(batch)!r}"
        return (
            f"{what}: expected a finite number, got {value} at step {self.state.global_step + 1}"
            f"{begins}; the checkpoints before it are whole"
        )

    def _text(self, batch: Batch) -> Any:
        ids, tokenizer = batch.input_ids[0, :24].tolist(), self.processing_class
        return tokenizer.decode(ids) if isinstance(tokenizer, PreTrainedTokenizerBase) else ids

    def log(self, logs: dict[str, float], start_time: float | None = None) -> None:
        """As Trainer, with what the steps since the last time were like."""
        if "learning_rate" in logs and self.is_in_train:
            logs = {**logs, **self.meter.read(self._reduced)}
        super().log(logs, start_time)

    def evaluate(
        self, eval_dataset: Any = None, ignore_keys: Any = None, metric_key_prefix: str = "eval"
    ) -> dict[str, float]:
        """Nats a token beyond the budget three ways, and the share of the gap recovered.

        Raises ValueError where no labelled token lies beyond the attached budget.
        """
        from ahn.training.gap import measure_gap

        loader = self.get_eval_dataloader(eval_dataset)
        settings = attached_state(self.attached).config
        limits = Limits(settings.window, settings.num_sinks)
        model = self.model_wrapped if self.is_in_train else self.model
        with self.meter.paused():
            found = measure_gap(model, self._once(loader), limits, self._reduced)
        metrics = {f"{metric_key_prefix}_{name}": value for name, value in found.items()}
        self.log(metrics)
        self.control = self.callback_handler.on_evaluate(
            self.args, self.state, self.control, metrics
        )
        return metrics

    def _once(self, loader: Any) -> Iterator[Batch]:
        """Batches without the labels of rows repeated to give every process as many."""
        for batch in loader:
            found, left = _plain(batch), self.accelerator.gradient_state
            if left.end_of_dataloader and left.remainder > 0 and found.labels is not None:
                rows = len(found.input_ids)
                found.labels[max(0, left.remainder - self.args.process_index * rows) :] = IGNORE
            yield found

    def save_model(self, output_dir: str | None = None, _internal_call: bool = False) -> None:
        """Write the memory's folder, whole from all shards."""
        folder = Path(output_dir or self.args.output_dir or ".")
        state.save(self.attached, folder, here=self.args.should_save)

    def _save_optimizer_and_scheduler(self, output_dir: str) -> None:
        """As Trainer, which would write the whole base into every checkpoint of a sharded run."""
        if self.is_deepspeed_enabled:
            engine: Any = self.model_wrapped
            engine.save_checkpoint(output_dir, exclude_frozen_parameters=True)
        elif self.is_fsdp_enabled:
            plugin = self.accelerator.state.fsdp_plugin
            save_fsdp_optimizer(plugin, self.accelerator, self.optimizer, self.model, output_dir)
        else:
            super()._save_optimizer_and_scheduler(output_dir)
            return
        if self.args.should_save and self.lr_scheduler is not None:
            torch.save(self.lr_scheduler.state_dict(), Path(output_dir) / SCHEDULER_NAME)

    def _load_from_checkpoint(self, resume_from_checkpoint: str, model: Any = None) -> None:
        state.load(self.attached, Path(resume_from_checkpoint))

    def load_complete(self, checkpoint: str) -> None:
        """Take over the end of a run that was stopped before it wrote its result."""
        self._load_from_checkpoint(checkpoint)
        self.state = TrainerState.load_from_json(f"{checkpoint}/{TRAINER_STATE_NAME}")
        self._shard()

    def _shard(self) -> None:
        """As training begins, for an evaluation without training: only so does the base fit."""
        if self.is_fsdp_enabled:
            pair = self.accelerator.prepare(self.model, self.create_optimizer())  # wants both
            self.model, self.optimizer = pair
            self.model_wrapped = self.model
        elif is_zero3(self.args):
            deepspeed_init(self, num_training_steps=0, inference=True)
            self.model_wrapped = self.accelerator.prepare(self.model)

    def _get_output_dir(self, trial: Any) -> str:
        return str(self._staging or super()._get_output_dir(trial))

    def _save_checkpoint(self, model: Any, trial: Any) -> None:
        with self.meter.paused():
            self._save_whole(model, trial)

    def _save_whole(self, model: Any, trial: Any) -> None:
        """As Trainer's saving, but the folder takes its name when it is complete."""
        folder = Path(super()._get_output_dir(trial))
        name = f"checkpoint-{self.state.global_step}"
        self._staging = folder / STAGING
        if self.args.should_save:
            shutil.rmtree(self._staging, ignore_errors=True)  # of a run that was killed
        self.accelerator.wait_for_everyone()
        try:
            super()._save_checkpoint(model, trial)
            self.accelerator.wait_for_everyone()
            if self.args.should_save and not (folder / name).exists():
                (self._staging / name).rename(folder / name)
            self.accelerator.wait_for_everyone()
        finally:
            if self.args.should_save:
                shutil.rmtree(self._staging, ignore_errors=True)
            self._staging = None
        if self.args.should_save:
            rotate_checkpoints(
                output_dir=str(folder), save_total_limit=self.args.save_total_limit, use_mtime=False
            )

    def _reduced(self, values: Tensor) -> Tensor:
        """Summed over all processes."""
        return self.accelerator.reduce(values, "sum")


def _plain(batch: dict[str, Any]) -> Batch:
    return Batch(batch["input_ids"], batch.get("labels"), batch.get("position_ids"))
