"""What all tests share: quiet libraries, one thread, the same random numbers in every test."""

import pytest
import torch
import transformers

torch.set_num_threads(1)  # tiny models run faster on one
transformers.logging.set_verbosity_error()
transformers.logging.disable_progress_bar()


@pytest.fixture(autouse=True)
def _seed():
    torch.manual_seed(0)


@pytest.fixture(autouse=True)
def _unwritten_memory_is_nan():
    """What a kernel leaves unwritten shows: `torch.empty` is filled with NaN."""
    torch.use_deterministic_algorithms(True, warn_only=True)
    assert torch.empty(3).isnan().all()
    yield
    torch.use_deterministic_algorithms(False)
