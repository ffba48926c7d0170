"""Checkpoints of a run: the memory and its optimizer, never the base; renamed when complete."""

from __future__ import annotations

import shutil
from collections.abc import Mapping
from pathlib import Path
from types import MappingProxyType
from typing import Any

import torch
from accelerate.utils import save_fsdp_optimizer
from transformers import Trainer, TrainerState
from transformers.integrations.deepspeed import deepspeed_init
from transformers.trainer import SCHEDULER_NAME, TRAINER_STATE_NAME
from transformers.trainer_utils import rotate_checkpoints

from ahn.io.files import naming
from ahn.training import memory_state
from ahn.training.manifest import write_manifest
from ahn.training.zero3 import is_zero3

STAGING = ".saving"  # subfolder in which a checkpoint is written before it is renamed


class CheckpointTrainer(Trainer):
    """transformers' Trainer whose model is a `Distiller`: it saves and loads the memory alone.

    A checkpoint is written into a staging folder and renamed once it is complete. So a run that is
    killed while it saves leaves no broken checkpoint behind.
    """

    _staging: Path | None = None
    record: Mapping[str, Any] = MappingProxyType({})  # what the run is, for its checkpoints

    @property
    def attached(self) -> Any:
        """The model with its memory, without the wrappers around it."""
        return self.accelerator.unwrap_model(self.model).model

    def save_model(self, output_dir: str | None = None, _internal_call: bool = False) -> None:
        """Write the memory's folder, gathered from all shards."""
        folder = Path(output_dir or self.args.output_dir or ".")
        memory_state.save(self.attached, folder, writes=self.args.should_save)

    def _load_from_checkpoint(self, resume_from_checkpoint: str, model: Any = None) -> None:
        memory_state.load(self.attached, Path(resume_from_checkpoint))

    def load_complete(self, checkpoint: str) -> None:
        """Load the last checkpoint of a run that stopped before it wrote its result."""
        self._load_from_checkpoint(checkpoint)
        self.state = TrainerState.load_from_json(f"{checkpoint}/{TRAINER_STATE_NAME}")
        self._shard()

    def _shard(self) -> None:
        """Shard the base as training would, for an evaluation that no training precedes."""
        if self.is_fsdp_enabled:
            optimizer = self.create_optimizer()  # accelerate shards only both together
            self.model, self.optimizer = self.accelerator.prepare(self.model, optimizer)
            self.model_wrapped = self.model
        elif is_zero3(self.args):
            deepspeed_init(self, num_training_steps=0, inference=True)
            self.model_wrapped = self.accelerator.prepare(self.model)

    def _save_optimizer_and_scheduler(self, output_dir: str) -> None:
        """Save without the base, which Trainer would add to every checkpoint of a sharded run."""
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

    def _get_output_dir(self, trial: Any) -> str:
        return str(self._staging or super()._get_output_dir(trial))

    def _save_checkpoint(self, model: Any, trial: Any) -> None:
        """Let Trainer save into the staging folder, then rename the checkpoint."""
        folder = Path(super()._get_output_dir(trial))
        name = f"checkpoint-{self.state.global_step}"
        self._staging = folder / STAGING
        if self.args.should_save:
            shutil.rmtree(self._staging, ignore_errors=True)  # of a run that was killed
        self.accelerator.wait_for_everyone()
        try:
            with naming(folder / name):
                super()._save_checkpoint(model, trial)
            self.accelerator.wait_for_everyone()
            if self.args.should_save:
                write_manifest(self._staging / name, self.record)
                if (folder / name).exists():  # a damaged one, that the run did not resume from
                    (folder / name).rename(self._staging / "before")
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
