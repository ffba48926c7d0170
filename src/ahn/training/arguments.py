"""Arguments of a training run, parsed from the command line, YAML or JSON."""

from __future__ import annotations

from dataclasses import dataclass, field, replace

from transformers import SchedulerType, TrainingArguments, __version__
from transformers.integrations import get_available_reporting_integrations

from ahn.checkpoint.named_models import NAMED_MODELS
from ahn.config import AHNConfig
from ahn.training.budget import BudgetSampler
from ahn.training.losses import (
    Loss,
    layer_distance,
    loss_by_name,
    normalized_layer_distance,
    registered_losses,
)
from ahn.training.slots.scores import SCORE_SHARE
from ahn.training.slots.setup import FIND

NONE = "none"  # the word for a memory without a cell

DTYPES = ("auto", "float32", "bfloat16", "float16", "float64")  # of a base


@dataclass
class ModelArguments:
    """The base, and the memory to train for it."""

    _argument_group_name = "model and memory"  # of the options in --help
    model_name_or_path: str = field(
        metadata={"help": f"Folder or hub name of the base, or {' or '.join(NAMED_MODELS)}."}
    )
    ahn_implementation: str = field(
        default="GatedDeltaNet",
        metadata={"help": "Cell of a new memory; the word none has slots alone."},
    )
    slots: int = field(
        default=0,
        metadata={"help": "Pairs that a key head of a new memory keeps exactly, on average."},
    )
    slot_bits: int = field(default=16, metadata={"help": "Of each number in a slot: 16, 8 or 4."})
    slot_shares: str = field(
        default=FIND,
        metadata={
            "help": "Slots of each layer and key head: find (which look far, on some of the "
            "texts), equal, or a JSON file that an earlier run wrote."
        },
    )
    memory: str | None = field(
        default=None, metadata={"help": "Folder or hub name of a memory to train further."}
    )
    window: int | None = field(
        default=None, metadata={"help": "Window the memory is evaluated and saved with."}
    )
    num_sinks: int | None = field(
        default=None,
        metadata={
            "help": "Sinks the memory is evaluated and saved with.",
            "aliases": ["--num_attn_sinks"],
        },
    )
    full_attention_layers: list[int] = field(
        default_factory=list,
        metadata={
            "help": "Layers without a memory, for a new memory.",
            "aliases": ["--fa_layer_ids"],
        },
    )
    use_q_proj: bool = field(
        default=False, metadata={"help": "Give new cells a query projection of their own."}
    )
    use_router: bool = field(
        default=False,
        metadata={
            "help": "Scale the output of new cells by position.",
            "aliases": ["--use_ahn_router"],
        },
    )
    dtype: str = field(
        default="auto", metadata={"help": "Of the base: auto (as saved), float32, bfloat16, ..."}
    )
    kernels: str = field(default="auto", metadata={"help": "auto, torch, fla or triton."})
    trust_remote_code: bool = field(default=False, metadata={"help": "Run the base's own code."})

    def __post_init__(self) -> None:
        if self.dtype not in DTYPES:
            raise ValueError(f"dtype: expected one of {', '.join(DTYPES)}, got {self.dtype!r}")

    def new_memory(self) -> AHNConfig:
        """Configuration of a memory that is trained from scratch."""
        config = AHNConfig(
            memory=None if self.ahn_implementation == NONE else self.ahn_implementation,
            slots=self.slots,
            slot_bits=self.slot_bits,
            full_attention_layers=tuple(self.full_attention_layers),
            use_q_proj=self.use_q_proj,
            use_router=self.use_router,
        )
        return config.with_budget(self.window, self.num_sinks)


@dataclass
class DistillArguments:
    """The losses, and the window and sinks of each step."""

    _argument_group_name = "losses, window and sinks"  # of the options in --help
    loss_type: str = field(
        default="kl",
        metadata={"help": "kl, ce, distill or another registered loss, or several joined by +."},
    )
    loss_weights: list[float] | None = field(
        default=None, metadata={"help": "One for each of loss_type; default: 1 each."}
    )
    normalize_distill: bool = field(
        default=True,
        metadata={
            "help": "Divide the distances of distill by the teacher's mean square.",
            "aliases": ["--use_normalized_l2"],
        },
    )
    ahn_position: str = field(
        default="random", metadata={"help": "prefix (no sinks) or random (sinks drawn)."}
    )
    sliding_window_type: str = field(
        default="random", metadata={"help": "Budget of a step: fixed, linear or random."}
    )
    sliding_window: int = field(default=256, metadata={"help": "The budget where it is fixed."})
    save_ahn_only: bool = field(
        default=True, metadata={"help": "Save the memory without a merged model."}
    )
    plot_loss: bool = field(default=True, metadata={"help": "Draw training.png."})
    score_share: float = field(
        default=SCORE_SHARE,
        metadata={
            "help": "Share of the steps, the first ones, that fit the scores of slots to the later "
            "use of tokens; the rest train the choice."
        },
    )
    map_rate: float = field(
        default=1.0,
        metadata={"help": "Learning rate of head-wise maps, as a multiple of learning_rate."},
    )

    def __post_init__(self) -> None:
        if not 0 <= self.score_share <= 1:
            raise ValueError(f"score_share: expected 0 to 1, got {self.score_share}")

    @property
    def losses(self) -> dict[str, Loss]:
        """The losses by name; raises ValueError for an unknown loss or a wrong list of weights."""
        names, known = self.loss_type.split("+"), registered_losses()
        if unknown := [name for name in names if name not in known]:
            raise ValueError(
                f"loss_type: expected {', '.join(known)} joined by +, got {unknown[0]!r}"
            )
        weights = self.loss_weights or [1.0] * len(names)
        if len(weights) != len(names) or min(weights) <= 0:
            raise ValueError(
                f"loss_weights: expected {len(names)} numbers above 0, got {self.loss_weights}"
            )
        return {name: replace(self._loss(name), weight=x) for name, x in zip(names, weights)}

    def _loss(self, name: str) -> Loss:
        loss = loss_by_name(name)
        if loss.function is layer_distance and self.normalize_distill:
            return replace(loss, function=normalized_layer_distance)
        return loss

    def sampler(self, seed: int) -> BudgetSampler:
        """Draws window and sinks of each step, see `BudgetSampler`."""
        return BudgetSampler(self.sliding_window_type, self.ahn_position, self.sliding_window, seed)


_HELP = {name: dict(x.metadata) for name, x in TrainingArguments.__dataclass_fields__.items()}
if "warmup_ratio" not in _HELP:  # a share of the steps: warmup_steps takes it too
    _HELP["warmup_steps"]["aliases"] = ["--warmup_ratio"]


@dataclass
class RunArguments(TrainingArguments):
    """All of transformers' TrainingArguments, with the paper's defaults."""

    _argument_group_name = "training, as in transformers"  # of the options in --help
    learning_rate: float = field(default=1e-4, metadata=_HELP["learning_rate"])
    weight_decay: float = field(default=0.1, metadata=_HELP["weight_decay"])
    warmup_steps: float = field(default=0.1, metadata=_HELP["warmup_steps"])
    lr_scheduler_type: SchedulerType | str = field(
        default="cosine", metadata=_HELP["lr_scheduler_type"]
    )
    num_train_epochs: float = field(default=1.0, metadata=_HELP["num_train_epochs"])
    per_device_train_batch_size: int = field(
        default=1, metadata=_HELP["per_device_train_batch_size"]
    )
    per_device_eval_batch_size: int = field(default=1, metadata=_HELP["per_device_eval_batch_size"])
    logging_steps: float = field(default=10, metadata=_HELP["logging_steps"])
    logging_nan_inf_filter: bool = field(default=False, metadata=_HELP["logging_nan_inf_filter"])
    # transformers types these as a string or a list; the parser would only accept a string.
    report_to: list[str] = field(default_factory=lambda: ["none"], metadata=_HELP["report_to"])
    optim_target_modules: list[str] | None = field(
        default=None, metadata=_HELP["optim_target_modules"]
    )

    def __post_init__(self) -> None:
        if not hasattr(self, "activation_checkpointing"):
            raise ValueError(
                "transformers: expected a version that knows activation_checkpointing, to train, "
                f"got {__version__}"
            )
        if self.activation_checkpointing is None and self.gradient_checkpointing is None:
            self.activation_checkpointing = True
        try:
            super().__post_init__()
        except ImportError as error:  # an option needs deepspeed, tensorboard, ...
            raise ValueError(f"options: expected an installed package, got: {error}") from error
        available = get_available_reporting_integrations()
        for tool in self.report_to:
            if tool not in ("none", "all", *available):
                raise ValueError(
                    f"report_to: expected an installed tool of {', '.join(available) or 'none'}, "
                    f"got {tool!r}"
                )
        if self.device.type == "cpu":
            self.dataloader_pin_memory = False  # PyTorch would warn that there is no accelerator
        self.remove_unused_columns = False  # the collator needs all columns of the data set
        if self.load_best_model_at_end:
            raise ValueError(
                "load_best_model_at_end: expected false, got true (checkpoints hold the memory; "
                "load the one you want with --memory)"
            )
        if self.n_gpu > 1:
            raise ValueError(
                f"{self.n_gpu} GPUs: expected accelerate launch or torchrun with one process each"
            )
