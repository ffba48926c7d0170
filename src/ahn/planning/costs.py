"""What reading and writing cost with full attention, a window and a memory, and what fits.

Operations and bytes are in closed form; multiply and add count as two operations. Times are bounds:
what the machine would take at its makers' peak rates, which no program reaches.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import asdict, dataclass, replace
from typing import Any

from ahn.cost import bounded_pairs
from ahn.planning.decoder import Decoder, LayerNumbers, held_bytes
from ahn.planning.gpus import Gpu
from ahn.runtime.prefill_chunk import PREFILL_CHUNK_SIZE

METHODS = ("full", "window", "memory")
NUMBER = {"float32": 4, "bfloat16": 2, "float16": 2, "int8": 2, "int4": 2}  # of a key: bytes
WEIGHT = {"float32": 4.0, "bfloat16": 2.0, "float16": 2.0, "int8": 1.0, "int4": 0.5}
SCALES = 2 / 64  # bytes of a quantised weight's scale: 16 bits for 64 weights
QUANTISED = ("int8", "int4")
USABLE = 0.95  # of a GPU's memory: its driver and PyTorch take the rest
UNIT = 256  # a recommended window is a multiple of so many tokens


@dataclass(frozen=True)
class Costs:
    """Of one method, at a length.

    Attributes:
        nbytes: of the cache of one sequence.
        prefill_flops: operations to read so many tokens.
        decode_flops: of one more token.
        decode_nbytes: bytes that one more token of every row moves.
        prefill_seconds, decode_seconds: bounds on the GPU for the batch; None without a GPU.
        largest_batch: sequences of this length that fit; None without a GPU.
        largest_length: tokens that fit at this batch; None without a GPU, or any length.
    """

    nbytes: int
    prefill_flops: int
    decode_flops: int
    decode_nbytes: int
    prefill_seconds: float | None = None
    decode_seconds: float | None = None
    largest_batch: int | None = None
    largest_length: int | None = None


@dataclass(frozen=True)
class Plan:
    """Attributes:
    parameters, memory_parameters: of the base and of the memory.
    weights_nbytes: of both, in the dtype.
    costs: by method.
    recommended_window: the largest that fits for the batch; None without a GPU, or where none does.
    """

    length: int
    batch: int
    dtype: str
    parameters: int
    memory_parameters: int
    weights_nbytes: int
    costs: dict[str, Costs]
    recommended_window: int | None

    def to_dict(self) -> dict[str, Any]:
        """Plain values, ready for JSON."""
        return asdict(self)


def plan(
    decoder: Decoder,
    length: int,
    *,
    batch: int = 1,
    dtype: str = "bfloat16",
    gpu: Gpu | None = None,
    prefill_chunk_size: int = PREFILL_CHUNK_SIZE,
) -> Plan:
    """The plan of a decoder for texts of `length` tokens.

    Args:
        dtype: of the weights; with int8 and int4 keys and activations are bfloat16, and so are
            embeddings and norms.
        prefill_chunk_size: tokens read at a time, whose activations need room.

    Raises ValueError for a length or batch below 1, or an unknown dtype.
    """
    if min(length, batch) < 1:
        raise ValueError(f"length, batch: expected at least 1, got {length} and {batch}")
    if dtype not in WEIGHT:
        raise ValueError(f"dtype: expected one of {', '.join(WEIGHT)}, got {dtype!r}")
    fit = Fit(decoder, dtype, gpu, prefill_chunk_size)
    costs = {method: fit.costs(method, length, batch) for method in METHODS}
    window = None if gpu is None else fit.largest_window(length, batch)
    return Plan(
        length=length,
        batch=batch,
        dtype=dtype,
        parameters=decoder.parameters,
        memory_parameters=decoder.memory_parameters,
        weights_nbytes=fit.weights,
        costs=costs,
        recommended_window=window,
    )


def rows_of(decoder: Decoder, index: int, method: str, length: int) -> int:
    """Tokens of a text of `length` whose keys a layer's cache holds at its end.

    With a window or a memory they are those of a full window, however short the text is.
    """
    layer, settings = decoder.layers[index], decoder.settings
    if layer.has_memory and method != "full":
        return settings.window_of(index) + settings.num_sinks
    return length if layer.bound is None else min(length, layer.bound)


def cache_nbytes(decoder: Decoder, method: str, length: int, number: int = 2) -> int:
    """Bytes of one sequence's cache after `length` tokens.

    Args:
        number: bytes of one number of a key or value.
    """
    total = 0
    for index, layer in enumerate(decoder.layers):
        row = 2 * layer.sizes.groups * layer.sizes.head_dim * number
        if method == "memory" and layer.has_memory:
            row += held_bytes(layer.waiting, number)
            total += held_bytes(layer.states, number)
        total += rows_of(decoder, index, method, length) * row
    return total


def prefill_flops(decoder: Decoder, method: str, length: int) -> int:
    """Operations to read `length` tokens, with the logits of the last one."""
    total = 2 * decoder.head
    for index, layer in enumerate(decoder.layers):
        total += mixer_flops(decoder, index, method, length) + 2 * layer.mlp * length
    return total


def mixer_flops(decoder: Decoder, index: int, method: str, length: int) -> int:
    """Operations of one layer's attention and memory for a text of `length`."""
    layer, settings = decoder.layers[index], decoder.settings
    heads, width = layer.sizes.heads, layer.sizes.head_dim
    is_bounded = layer.has_memory and method != "full"
    seen = settings.window_of(index) + settings.num_sinks if is_bounded else layer.bound
    pairs = heads * bounded_pairs(length, length if seen is None else seen)
    total = 2 * layer.mixer * length
    if method == "memory" and layer.has_memory:
        evicted = max(0, length - settings.window_of(index) - settings.num_sinks)
        total += 2 * layer.cell * length + evicted * (layer.state + 2 * layer.read)
        pairs += _slot_pairs(layer, decoder, index, evicted)
    return total + 4 * width * pairs


def _slot_pairs(layer: LayerNumbers, decoder: Decoder, index: int, evicted: int) -> int:
    sizes = decoder.settings.slots_of(index, layer.sizes.groups)
    ratio = layer.sizes.heads // layer.sizes.groups
    return ratio * sum(bounded_pairs(evicted, size) for size in sizes)


def free_nbytes(decoder: Decoder, dtype: str, gpu: Gpu, chunk: int = PREFILL_CHUNK_SIZE) -> int:
    """Bytes that a GPU has for caches, beside weights and the activations of a chunk."""
    return Fit(decoder, dtype, gpu, chunk).free


class Fit:
    """A decoder in a dtype on a GPU: what fits, and how long it takes at least."""

    def __init__(self, decoder: Decoder, dtype: str, gpu: Gpu | None, chunk: int) -> None:
        self.decoder, self.gpu = decoder, gpu
        self.number = NUMBER[dtype]
        small = decoder.matrices if dtype in QUANTISED else 0
        weight = WEIGHT[dtype] + (SCALES if dtype in QUANTISED else 0)
        rest = decoder.parameters + decoder.memory_parameters - small
        self.weights = round(small * weight) + rest * self.number
        self.activations = decoder.widest * chunk * self.number
        self.read = self._weights_read(weight if small else float(self.number))

    def costs(self, method: str, length: int, batch: int) -> Costs:
        """Of one method for a batch of texts."""
        decoder = self.decoder
        nbytes = cache_nbytes(decoder, method, length, self.number)
        prefill = prefill_flops(decoder, method, length)
        step = prefill_flops(decoder, method, length + 1) - prefill + 2 * decoder.head
        moved = self.read + batch * nbytes
        costs = Costs(nbytes, prefill, step, moved)
        if self.gpu is None:
            return costs
        free = self.free
        return Costs(
            *(nbytes, prefill, step, moved),
            prefill_seconds=self.gpu.seconds(batch * prefill, 0),
            decode_seconds=self.gpu.seconds(batch * step, moved),
            largest_batch=max(0, free // nbytes),
            largest_length=_largest(
                lambda n: batch * cache_nbytes(decoder, method, n, self.number) <= free
            ),
        )

    def largest_window(self, length: int, batch: int) -> int | None:
        """The largest window in steps of `UNIT` with which so many texts of this length fit.

        It is no larger than the text, or than what the base was trained on. None where the smallest
        does not fit.
        """
        sinks, free = self.decoder.settings.num_sinks, self.free
        most = max(UNIT, min(length, self.decoder.trained_length or length) - sinks)

        def fits(steps: int) -> bool:
            settings = self.decoder.settings.with_budget(window=steps * UNIT)
            other = replace(self.decoder, settings=settings)
            return batch * cache_nbytes(other, "memory", length, self.number) <= free

        steps = _largest(fits, most // UNIT)
        return steps * UNIT if steps else None

    @property
    def free(self) -> int:
        """Bytes that are left for caches."""
        assert self.gpu is not None
        return int(self.gpu.nbytes * USABLE) - self.weights - self.activations

    def _weights_read(self, weight: float) -> int:
        """Bytes of the weights that a step of one token reads."""
        layers = self.decoder.layers
        matrices = sum(layer.mixer + layer.mlp for layer in layers)
        others = sum(layer.cell + layer.read for layer in layers) + self.decoder.head
        return round(matrices * weight) + others * self.number


def _largest(fits: Callable[[int], bool], most: int = 2**32) -> int | None:
    """The largest number up to `most` that fits, 0 where none does; None where all do."""
    if fits(most):
        return None if most == 2**32 else most
    low, high = 0, most
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (middle, high) if fits(middle) else (low, middle)
    return low
