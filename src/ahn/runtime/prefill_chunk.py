"""How many tokens of a prompt a forward reads: what fits, and what the window divides."""

from __future__ import annotations

import torch
from transformers import PreTrainedModel

from ahn.cost import Shape
from ahn.hf.attached_state import attached_state

PREFILL_CHUNK_SIZE = 2048  # on a CPU
LARGEST_CHUNK = 16384  # on a GPU: beyond, memory grows and time hardly falls
SMALLEST_CHUNK = 256
SHARE_OF_FREE = 0.5  # of a GPU's memory, for the activations of a chunk


def prefill_chunk(model: PreTrainedModel, batch: int) -> int:
    """Tokens per forward for so many rows: on a GPU as many as half of its free memory takes.

    Of a window shorter than that, a multiple: its attention works in blocks of a window.
    """
    if model.device.type != "cuda":
        return PREFILL_CHUNK_SIZE
    free = torch.cuda.mem_get_info(model.device)[0]
    free += torch.cuda.memory_reserved(model.device) - torch.cuda.memory_allocated(model.device)
    per_token = numbers_per_token(Shape.of(model.config)) * model.dtype.itemsize * batch
    fitting = min(LARGEST_CHUNK, int(SHARE_OF_FREE * free / per_token))
    step = attached_state(model).config.window
    step = step if SMALLEST_CHUNK < step <= fitting else SMALLEST_CHUNK
    return max(SMALLEST_CHUNK, fitting // step * step)


def numbers_per_token(shape: Shape) -> int:
    """Activations of a layer held at once: in its MLP, or where its memory is written and read.

    There the recurrence holds about fifteen tensors as wide as all heads, and the states of
    its chunks.
    """
    wide = shape.heads * shape.head_dim
    return 3 * shape.hidden + max(3 * shape.intermediate, 17 * wide)
