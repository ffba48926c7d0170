"""Settings of a memory: what is kept exactly, in which bytes, which cell compresses the rest."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields, replace
from typing import Any

SLOT_BITS = (16, 8, 4)
BUDGETS = ("slots", "slot_bits", "slot_shares", "window_shares")
NEW = (*BUDGETS, "slot_distance", "slot_beyond")  # settings since 0.2
BEYOND = ("clamp", "drop")
MOST = 2**48  # tokens: sums of several fit into the integers of a device
MOST_SLOTS = 2**31
TOLERANCE = 1e-3  # how far from 1 shares may sum, as rounded text


@dataclass(frozen=True)
class AHNConfig:
    """What an attached model keeps exactly and which cell remembers the rest (arXiv 2510.07318).

    Attributes:
        memory: name of the cell: `GatedDeltaNet`, `DeltaNet`, `Mamba2` or a registered one; None
            has none, and then slots.
        window: tokens a query sees exactly, itself included, not counting the sinks (>= 1).
        num_sinks: first tokens of the text, kept exactly for ever (>= 0).
        full_attention_layers: indices of layers left as they are, with full attention.
        use_q_proj: read the memory with its own linear map of the query before RoPE.
        use_router: scale what is read by a learned function of the position.
        slots: pairs of a key and a value that each key head keeps exactly of what has left the
            window, on average (>= 0). A cell, where there is one, is written all that leaves.
        slot_bits: of each number in a slot: 16 keeps it as it is, 8 and 4 are codes.
        slot_shares: of L * G * `slots`, for each layer and key head `[L][G]`; they sum to 1, and
            are 0 in layers without a memory. None: alike.
        slot_distance: the furthest distance at which a slot is read as it is: tokens between its
            own and the query's, at least the longest budget. None: any, also one that the base
            has never seen.
        slot_beyond: how it is read beyond that: `clamp`, at that distance, sinks too; `drop`, not
            at all, while it keeps its slot.
        window_shares: for each layer `[L]`; they sum to 1, and are 0 in layers without a memory.
            `window` is then the average of the others. None: alike. There is none for each head:
            one ring holds the keys of all heads, so a shorter window of one would save nothing.

    Raises:
        ValueError: a value is out of range.
    """

    memory: str | None = "GatedDeltaNet"
    window: int = 32640
    num_sinks: int = 128
    full_attention_layers: tuple[int, ...] = ()
    use_q_proj: bool = False
    use_router: bool = False
    slots: int = 0
    slot_bits: int = 16
    slot_shares: tuple[tuple[float, ...], ...] | None = None
    window_shares: tuple[float, ...] | None = None
    slot_distance: int | None = None
    slot_beyond: str = "clamp"

    def __post_init__(self) -> None:
        _require_int("window", self.window, minimum=1)
        _require_int("num_sinks", self.num_sinks, minimum=0)
        _require_int("slots", self.slots, minimum=0, maximum=MOST_SLOTS)
        for name in ("use_q_proj", "use_router"):
            if not isinstance(getattr(self, name), bool):
                raise ValueError(f"{name}: expected true or false, got {getattr(self, name)!r}")
        layers = self.full_attention_layers
        if isinstance(layers, (str, bytes)) or not hasattr(layers, "__iter__"):
            raise ValueError(f"full_attention_layers: expected a list of indices, got {layers!r}")
        for layer in layers:
            _require_int("full_attention_layers", layer, minimum=0)
        object.__setattr__(self, "full_attention_layers", tuple(sorted(set(layers))))
        self._check_memory()
        self._check_shares()
        self._check_distance()

    def _check_memory(self) -> None:
        if not (self.memory is None or (isinstance(self.memory, str) and self.memory)):
            raise ValueError(f"memory: expected the name of a cell, got {self.memory!r}")
        if isinstance(self.slot_bits, bool) or self.slot_bits not in SLOT_BITS:
            raise ValueError(f"slot_bits: expected 16, 8 or 4, got {self.slot_bits!r}")
        if self.memory is None and not self.slots:
            raise ValueError("memory: expected the name of a cell, or slots above 0, got neither")
        if self.memory is None and (self.use_q_proj or self.use_router):
            raise ValueError("use_q_proj, use_router: expected a cell for them, got memory=None")
        for name, default in (("slot_bits", 16), ("slot_shares", None), ("slot_distance", None)):
            if not self.slots and getattr(self, name) != default:
                raise ValueError(f"{name}: expected slots above 0 to go with it, got slots=0")

    def _check_shares(self) -> None:
        """Shares as tuples; what they say of layers and their sum is right."""
        if self.slot_shares is not None:
            shares = _rows("slot_shares", self.slot_shares)
            _check_sum("slot_shares", [x for row in shares for x in row])
            self._check_layers("slot_shares", [sum(row) for row in shares])
            object.__setattr__(self, "slot_shares", shares)
        if self.window_shares is not None:
            (row,) = _rows("window_shares", [self.window_shares])
            _check_sum("window_shares", row)
            self._check_layers("window_shares", row)
            object.__setattr__(self, "window_shares", row)

    def _check_distance(self) -> None:
        if self.slot_distance is not None:
            _require_int("slot_distance", self.slot_distance, minimum=self._longest_budget)
        if self.slot_beyond not in BEYOND:
            raise ValueError(f"slot_beyond: expected clamp or drop, got {self.slot_beyond!r}")
        if self.slot_distance is None and self.slot_beyond != "clamp":
            raise ValueError("slot_beyond: expected a slot_distance to go with it, got none")

    def _check_layers(self, name: str, shares: Any) -> None:
        for layer in self.full_attention_layers:
            if layer >= len(shares):
                raise ValueError(f"{name}: expected one for each layer, got none for {layer}")
            if shares[layer]:
                raise ValueError(
                    f"{name}: expected 0 in layer {layer} of full attention, got {shares[layer]:g}"
                )

    @property
    def budget(self) -> int:
        """Tokens seen exactly: up to this length the model equals its base.

        With shares it is that of the layer with the shortest window.
        """
        windows = (self.window,) if self.windows is None else filter(None, self.windows)
        return min(windows) + self.num_sinks

    @property
    def _longest_budget(self) -> int:
        return max(self.windows or (self.window,)) + self.num_sinks

    @property
    def windows(self) -> tuple[int, ...] | None:
        """The window of each layer, 0 where `window_shares` is; None where all have `window`."""
        shares = self.window_shares
        if shares is None:
            return None
        whole = self.window * sum(x > 0 for x in shares)
        return tuple(max(1, round(whole * x)) if x else 0 for x in shares)

    def window_of(self, layer: int) -> int:
        """The window of a layer with a memory."""
        return self.window if self.windows is None else self.windows[layer]

    def slots_of(self, layer: int, heads: int) -> tuple[int, ...]:
        """Slots of each of the `heads` key heads of a layer with a memory."""
        shares = self.slot_shares
        if shares is None:
            return (self.slots,) * heads
        return tuple(round(self.slots * len(shares) * heads * x) for x in shares[layer])

    def has_memory(self, layer: int) -> bool:
        """Whether the layer of that index has a memory; the others look back as the base does."""
        return layer not in self.full_attention_layers

    def with_budget(self, window: int | None = None, num_sinks: int | None = None) -> AHNConfig:
        """The same settings with another window or number of sinks; None keeps the own one."""
        given = {"window": window, "num_sinks": num_sinks}
        return replace(self, **{k: v for k, v in given.items() if v is not None})  # type: ignore

    def to_dict(self) -> dict[str, Any]:
        """Plain values, ready for JSON; `from_dict` reads them back.

        Slot settings and shares at their defaults are left out, so older files stay the same.
        """
        values = {**asdict(self), "full_attention_layers": list(self.full_attention_layers)}
        if self.slot_shares is not None:
            values["slot_shares"] = [list(row) for row in self.slot_shares]
        if self.window_shares is not None:
            values["window_shares"] = list(self.window_shares)
        defaults = {f.name: f.default for f in fields(self) if f.name in NEW}
        return {k: v for k, v in values.items() if k not in defaults or v != defaults[k]}

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> AHNConfig:
        """Read `to_dict`'s form. Raises ValueError for a key that is not a setting."""
        known = [f.name for f in fields(cls)]
        unknown = sorted(set(values) - set(known))
        if unknown:
            raise ValueError(f"memory config: expected keys among {known}, got {unknown}")
        return cls(**values)


def _require_int(name: str, value: Any, minimum: int, maximum: int = MOST) -> None:
    if isinstance(value, bool) or not isinstance(value, int) or value < minimum:
        raise ValueError(f"{name}: expected an integer >= {minimum}, got {value!r}")
    if value > maximum:
        raise ValueError(f"{name}: expected an integer <= {maximum}, got {value}")


def _rows(name: str, shares: Any) -> tuple[tuple[float, ...], ...]:
    """Rows of equal length, of finite numbers >= 0."""
    try:
        rows = tuple(tuple(float(x) for x in row) for row in shares)
    except (TypeError, ValueError):
        raise ValueError(f"{name}: expected numbers for each layer, got {shares!r}") from None
    if not rows or len({len(row) for row in rows}) > 1 or not rows[0]:
        raise ValueError(f"{name}: expected rows of one length, got {[len(row) for row in rows]}")
    if bad := [x for row in rows for x in row if not (math.isfinite(x) and x >= 0)]:
        raise ValueError(f"{name}: expected numbers >= 0, got {bad[0]}")
    return rows


def _check_sum(name: str, shares: Any) -> None:
    if abs(sum(shares) - 1) > TOLERANCE:
        raise ValueError(f"{name}: expected shares that sum to 1, got {sum(shares):.6g}")
