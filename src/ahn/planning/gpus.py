"""GPUs by name: what the makers' data sheets say of them."""

from __future__ import annotations

from dataclasses import dataclass

GIB = 2**30


@dataclass(frozen=True)
class Gpu:
    """Attributes:
    nbytes: of its memory.
    bandwidth: bytes a second, of its memory.
    flops: operations a second of dense bfloat16 products (float16 where it has no bfloat16).

    Rates are None where they are not known.
    """

    nbytes: int
    bandwidth: float | None
    flops: float | None

    def seconds(self, flops: int, nbytes: int) -> float | None:
        """At least what so many operations and moved bytes take; None where rates are unknown."""
        if self.flops is None or self.bandwidth is None:
            return None
        return max(flops / self.flops, nbytes / self.bandwidth)


GPUS = {
    "b200": Gpu(180 * 10**9, 8.0e12, 2250e12),
    "h200": Gpu(141 * 10**9, 4.8e12, 989e12),
    "h100": Gpu(80 * 10**9, 3.35e12, 989e12),
    "a100": Gpu(80 * 10**9, 2.04e12, 312e12),
    "a100-40": Gpu(40 * 10**9, 1.56e12, 312e12),
    "l40s": Gpu(48 * 10**9, 0.864e12, 362e12),
    "5090": Gpu(32 * 10**9, 1.79e12, 210e12),
    "4090": Gpu(24 * 10**9, 1.01e12, 165e12),
    "3090": Gpu(24 * 10**9, 0.936e12, 71e12),
    "l4": Gpu(24 * 10**9, 0.3e12, 121e12),
    "t4": Gpu(16 * 10**9, 0.32e12, 65e12),
}


def gpu_by_name(name: str) -> Gpu:
    """One of `GPUS`; ValueError for any other."""
    if name.lower() not in GPUS:
        raise ValueError(f"gpu: expected one of {', '.join(GPUS)}, got {name!r}")
    return GPUS[name.lower()]
