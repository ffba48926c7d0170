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
