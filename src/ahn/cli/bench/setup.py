"""What is measured, and where: the options of every `ahn bench` command, checked."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from ahn.io.progress import Report, under_way

if TYPE_CHECKING:
    import torch

    from ahn.bench import BenchModel

NO_MEMORY = "none"  # the word for --memory that leaves a model without a cell
DTYPES = ("bfloat16", "float16", "float32")


@dataclass(frozen=True)
class Setup:
    """A model to measure; see the help of `ahn bench`."""

    model: str
    memory: str
    window: int
    num_sinks: int
    dtype: str
    device: str | None
    liger: bool
    kernels: str = "auto"
    slots: int = 0
    slot_bits: int = 16

    def build(self, report: Report | None = None) -> tuple[BenchModel, dict[str, float]]:
        """The model, and the machine's ceilings; `report` is told that it is being made."""
        from ahn.bench import build, measure_ceilings
        from ahn.bench.models import check_name
        from ahn.config import AHNConfig

        place, number = placed(self.device, self.dtype)
        check_name(self.model)
        ceilings = measure_ceilings(place)
        settings = AHNConfig(
            memory=None if self.memory == NO_MEMORY else self.memory,
            window=self.window,
            num_sinks=self.num_sinks,
            slots=self.slots,
            slot_bits=self.slot_bits,
        )
        with under_way("building the model", report):
            built = build(
                self.model, settings, place, number, liger=self.liger, kernels=self.kernels
            )
        return built, ceilings

    def facts(self, built: BenchModel) -> dict[str, Any]:
        """What a result says of the model."""
        from ahn.hf.liger import uses_liger

        return {
            "model": self.model,
            "weights_gb": built.weights_bytes / 1e9,
            "dtype": str(built.model.dtype).removeprefix("torch."),
            "liger": uses_liger(built.model),
            **built.settings.to_dict(),
        }


def placed(device: str | None, dtype: str) -> tuple[torch.device, torch.dtype]:
    """Device, a GPU where none is named and there is one, and dtype; ValueError for another."""
    import torch

    if dtype not in DTYPES:
        raise ValueError(f"--dtype: expected bfloat16, float16 or float32, got {dtype!r}")
    name = device or ("cuda" if torch.cuda.is_available() else "cpu")
    try:
        place = torch.empty(0, device=name).device
    except (RuntimeError, AssertionError) as error:
        raise ValueError(f"--device: expected one that PyTorch can use, got {name!r}") from error
    return place, getattr(torch, dtype)


def named(methods: str) -> list[str]:
    """Names of methods from `--methods`; ValueError for one that is none."""
    from ahn.bench import METHODS

    names = methods.split(",")
    if wrong := [name for name in names if name not in METHODS]:
        raise ValueError(f"--methods: expected some of {', '.join(METHODS)}, got {wrong[0]!r}")
    return names
