"""Law: `kernels="torch"` is PyTorch alone, on a GPU too."""

from __future__ import annotations

import pytest
import torch
from measures import DEVICE

from ahn.generation import prefill
from ahn.hf.install import use_kernels
from ahn.ops.window_attention import cudnn_autograd, cudnn_forward
from ahn.runtime.decode_step import DecodeStep
from ahn.training import Distiller
from op_calls import flat, op_calls
from tiny_models import new_model, over_cells, random_ids

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device"),
]
CALLS = [*op_calls()]
HALF = torch.bfloat16


class Launched(Exception):
    """Something else than PyTorch was about to run."""


@pytest.fixture
def pytorch_alone(monkeypatch):
    """Triton's kernels and cuDNN's blocks end in an error."""
    jit = pytest.importorskip("triton.runtime.jit")

    def launch(*_, **__):
        raise Launched

    monkeypatch.setattr(jit.JITFunction, "run", launch)
    for place in (cudnn_forward, cudnn_autograd):
        monkeypatch.setattr(place, "attend", launch)


@pytest.mark.parametrize("call", CALLS, ids=lambda call: call[1])
@torch.no_grad()
def test_every_op_runs_pytorch_alone(call, pytorch_alone):
    run = op_calls(DEVICE, HALF)[call]
    assert all(x.isfinite().all() for x in flat(run("torch")))
    with pytest.raises(Launched):
        run("auto")


@over_cells
def test_an_attached_model_runs_pytorch_alone(cell, pytorch_alone):
    """A prompt, new tokens, and a step of training with its gradients."""
    settings = {"window": 64, "num_sinks": 8, "overrides": (("head_dim", 64),)}
    model = new_model("Qwen3", cell, dtype=HALF, **settings).to(DEVICE)
    ids = random_ids(300).to(DEVICE)

    def run():
        with torch.no_grad():
            logits, cache = prefill(model, ids)
            step = DecodeStep(model, cache, "eager")
            for _ in range(3):
                logits = step(logits.argmax(-1))
        assert logits.isfinite().all()
        Distiller(model)(ids, ids, window=64, num_sinks=8).loss.backward()

    with pytest.raises(Launched):
        run()
    use_kernels(model, "torch")
    run()
