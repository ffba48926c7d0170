"""Settings of a memory: what is kept exactly, which cell compresses the rest."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields, replace
from typing import Any


@dataclass(frozen=True)
class AHNConfig:
    """What an attached model keeps exactly and which cell remembers the rest (arXiv 2510.07318).

    Attributes:
        memory: name of the cell: `GatedDeltaNet`, `DeltaNet`, `Mamba2` or a registered one.
        window: tokens a query sees exactly, itself included, not counting the sinks (>= 1).
        num_sinks: first tokens of the text, kept exactly for ever (>= 0).
        full_attention_layers: indices of layers left as they are, with full attention.
        use_q_proj: read the memory with its own linear map of the query before RoPE.
        use_router: scale what is read by a learned function of the position.

    Raises:
        ValueError: a value is out of range.
    """

    memory: str = "GatedDeltaNet"
    window: int = 32640
    num_sinks: int = 128
    full_attention_layers: tuple[int, ...] = ()
    use_q_proj: bool = False
    use_router: bool = False

    def __post_init__(self) -> None:
        _require_int("window", self.window, minimum=1)
        _require_int("num_sinks", self.num_sinks, minimum=0)
        if not isinstance(self.memory, str) or not self.memory:
            raise ValueError(f"memory: expected the name of a cell, got {self.memory!r}")
        for name in ("use_q_proj", "use_router"):
            if not isinstance(getattr(self, name), bool):
                raise ValueError(f"{name}: expected true or false, got {getattr(self, name)!r}")
        layers = self.full_attention_layers
        if isinstance(layers, (str, bytes)) or not hasattr(layers, "__iter__"):
            raise ValueError(f"full_attention_layers: expected a list of indices, got {layers!r}")
        for layer in layers:
            _require_int("full_attention_layers", layer, minimum=0)
        object.__setattr__(self, "full_attention_layers", tuple(sorted(set(layers))))

    @property
    def budget(self) -> int:
        """Tokens seen exactly: up to this length the model equals its base."""
        return self.window + self.num_sinks

    def has_memory(self, layer: int) -> bool:
        """Whether the layer of that index has a memory; the others look back as the base does."""
        return layer not in self.full_attention_layers

    def with_budget(self, window: int | None = None, num_sinks: int | None = None) -> AHNConfig:
        """The same settings with another window or number of sinks; None keeps the own one."""
        given = {"window": window, "num_sinks": num_sinks}
        return replace(self, **{k: v for k, v in given.items() if v is not None})  # type: ignore

    def to_dict(self) -> dict[str, Any]:
        """Plain values, ready for JSON; `from_dict` reads them back."""
        return {**asdict(self), "full_attention_layers": list(self.full_attention_layers)}

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> AHNConfig:
        """Read `to_dict`'s form. Raises ValueError for a key that is not a setting."""
        known = [f.name for f in fields(cls)]
        unknown = sorted(set(values) - set(known))
        if unknown:
            raise ValueError(f"memory config: expected keys among {known}, got {unknown}")
        return cls(**values)


def _require_int(name: str, value: Any, minimum: int) -> None:
    if isinstance(value, bool) or not isinstance(value, int) or value < minimum:
        raise ValueError(f"{name}: expected an integer >= {minimum}, got {value!r}")
