"""The number of prompt tokens that one forward reads: what fits, in multiples of the window."""

from __future__ import annotations

from transformers import PreTrainedModel

from ahn.cost import Shape
from ahn.hf.attached_state import attached_state
from ahn.runtime.free_memory import free_on_gpu

PREFILL_CHUNK_SIZE = 2048  # on a CPU
LARGEST_CHUNK = 16384  # on a GPU: above, memory grows and time hardly falls
SMALLEST_CHUNK = 256
SHARE_OF_FREE = 0.5  # of a GPU's free memory, for the activations of a chunk


def default_prefill_chunk_size(model: PreTrainedModel, batch: int) -> int:
    """Tokens per forward of `batch` rows: on a GPU as many as half of its free memory takes.

    Where the window is shorter, a multiple of it: its attention works in blocks of a window.
    """
    if model.device.type != "cuda":
        return PREFILL_CHUNK_SIZE
    free = free_on_gpu(model.device)
    bytes_per_token = numbers_per_token(Shape.of(model.config)) * model.dtype.itemsize * batch
    largest = min(LARGEST_CHUNK, int(SHARE_OF_FREE * free / bytes_per_token))
    window = attached_state(model).config.window
    unit = window if SMALLEST_CHUNK < window <= largest else SMALLEST_CHUNK
    return max(SMALLEST_CHUNK, largest // unit * unit)


def numbers_per_token(shape: Shape) -> int:
    """Peak activations of a layer for one token: in its MLP, or in its memory.

    The recurrence allocates about fifteen tensors as wide as all heads, and the states of its
    chunks.
    """
    width = shape.heads * shape.head_dim
    return 3 * shape.hidden + max(3 * shape.intermediate, 17 * width)
