"""Arguments of a training run, read from the command line, YAML or JSON."""

from __future__ import annotations

from dataclasses import dataclass, field

from transformers import SchedulerType, TrainingArguments

from ahn.config import AHNConfig
from ahn.training.limits import LimitSampler
from ahn.training.losses import LossWeights


@dataclass
class ModelArguments:
    """The base, and the memory that is trained for it."""

    model_name_or_path: str = field(
        metadata={"help": "Folder or hub name of the base, or the word embedded."}
    )
    ahn_implementation: str = field(
        default="GatedDeltaNet", metadata={"help": "Cell of a fresh memory."}
    )
    memory: str | None = field(
        default=None, metadata={"help": "Folder or hub name of a memory to go on from."}
    )
    window: int | None = field(
        default=None, metadata={"help": "Window the memory is evaluated and saved with."}
    )
    num_sinks: int | None = field(
        default=None, metadata={"help": "Sinks the memory is evaluated and saved with."}
    )
    full_attention_layers: list[int] = field(
        default_factory=list, metadata={"help": "Layers of a fresh memory left as they are."}
    )
    use_q_proj: bool = field(
        default=False, metadata={"help": "Give fresh cells a query map of their own."}
    )
    use_router: bool = field(
        default=False, metadata={"help": "Scale what fresh cells read by position."}
    )
    dtype: str = field(
        default="auto", metadata={"help": "Of the base: auto (as saved), float32, bfloat16, ..."}
    )
    kernels: str = field(default="auto", metadata={"help": "auto, torch, fla or triton."})
    trust_remote_code: bool = field(default=False, metadata={"help": "Run the base's own code."})

    def fresh(self) -> AHNConfig:
        """Settings of a memory trained from nothing."""
        settings = AHNConfig(
            memory=self.ahn_implementation,
            full_attention_layers=tuple(self.full_attention_layers),
            use_q_proj=self.use_q_proj,
            use_router=self.use_router,
        )
        return settings.with_budget(self.window, self.num_sinks)


@dataclass
class DistillArguments:
    """The losses, and what each step keeps exactly."""

    loss_type: str = field(
        default="kl", metadata={"help": "kl, ce, distill, or several joined by +."}
    )
    loss_weights: list[float] | None = field(
        default=None, metadata={"help": "One for each of loss_type; default: 1 each."}
    )
    normalize_distill: bool = field(
        default=True, metadata={"help": "Divide layer-wise distances by the teacher's size."}
    )
    ahn_position: str = field(
        default="random", metadata={"help": "prefix (no sinks) or random (sinks drawn)."}
    )
    sliding_window_type: str = field(
        default="random", metadata={"help": "Budget of a step: fixed, linear or random."}
    )
    sliding_window: int = field(default=256, metadata={"help": "The budget where it is fixed."})
    save_ahn_only: bool = field(
        default=True, metadata={"help": "Save no merged model beside the memory."}
    )
    map_rate: float = field(
        default=1.0,
        metadata={"help": "Learning rate of the head-wise maps over that of the rest."},
    )

    @property
    def weights(self) -> LossWeights:
        """Of the losses; raises ValueError for an unknown loss or too few or many weights."""
        names = self.loss_type.split("+")
        if unknown := [name for name in names if name not in LossWeights._fields]:
            known = ", ".join(LossWeights._fields)
            raise ValueError(f"loss_type: expected {known} joined by +, got {unknown[0]!r}")
        numbers = self.loss_weights or [1.0] * len(names)
        if len(numbers) != len(names) or min(numbers) <= 0:
            raise ValueError(
                f"loss_weights: expected {len(names)} numbers above 0, got {self.loss_weights}"
            )
        return LossWeights(**{"kl": 0.0, **dict(zip(names, numbers))})

    def sampler(self, seed: int) -> LimitSampler:
        """Of window and sinks, see `LimitSampler`."""
        return LimitSampler(self.sliding_window_type, self.ahn_position, self.sliding_window, seed)


_THEIRS = {name: dict(x.metadata) for name, x in TrainingArguments.__dataclass_fields__.items()}


@dataclass
class RunArguments(TrainingArguments):
    """transformers' TrainingArguments, all of them, with the paper's defaults."""

    learning_rate: float = field(default=1e-4, metadata=_THEIRS["learning_rate"])
    weight_decay: float = field(default=0.1, metadata=_THEIRS["weight_decay"])
    warmup_steps: float = field(default=0.1, metadata=_THEIRS["warmup_steps"])
    lr_scheduler_type: SchedulerType | str = field(
        default="cosine", metadata=_THEIRS["lr_scheduler_type"]
    )
    num_train_epochs: float = field(default=1.0, metadata=_THEIRS["num_train_epochs"])
    per_device_train_batch_size: int = field(
        default=1, metadata=_THEIRS["per_device_train_batch_size"]
    )
    per_device_eval_batch_size: int = field(
        default=1, metadata=_THEIRS["per_device_eval_batch_size"]
    )
    logging_steps: float = field(default=10, metadata=_THEIRS["logging_steps"])
    logging_nan_inf_filter: bool = field(default=False, metadata=_THEIRS["logging_nan_inf_filter"])
    # Theirs are a word or a list, of which a parser of the command line takes the word alone.
    report_to: list[str] = field(default_factory=lambda: ["none"], metadata=_THEIRS["report_to"])
    optim_target_modules: list[str] | None = field(
        default=None, metadata=_THEIRS["optim_target_modules"]
    )

    def __post_init__(self) -> None:
        if self.activation_checkpointing is None and self.gradient_checkpointing is None:
            self.activation_checkpointing = True
        try:
            super().__post_init__()
        except ImportError as error:  # of what an option needs: deepspeed, tensorboard, ...
            raise ValueError(f"options: expected an installed package, got: {error}") from error
        if self.device.type == "cpu":
            self.dataloader_pin_memory = False  # else a warning that there is nothing to pin for
        self.remove_unused_columns = False  # the rows hold what the collator needs, nothing else
        if self.load_best_model_at_end:
            raise ValueError(
                "load_best_model_at_end: expected false, got true (checkpoints hold the memory; "
                "load the one you want with --memory)"
            )
        if self.n_gpu > 1:
            raise ValueError(
                f"{self.n_gpu} GPUs: expected accelerate launch or torchrun with one process each"
            )
