"""Law: a step of training on a GPU equals the general path on the CPU, part by part and whole."""

from __future__ import annotations

import copy
from functools import partial

import pytest
import torch
from measures import DEVICE, difference
from torch.utils.checkpoint import checkpoint
from transformers import Qwen2Config
from transformers.models.qwen2.modeling_qwen2 import Qwen2MLP

from ahn.hf.install import use_kernels
from ahn.memory import build_memory
from ahn.ops.backends import unsupported_reason
from ahn.ops.gated_mlp import gated_mlp
from ahn.ops.gated_mlp.autograd import ROWS
from ahn.ops.gated_norm import gated_norm
from ahn.ops.logit_losses import logit_losses
from ahn.ops.window_attention import SavedOutputs, window_attention
from ahn.ops.window_attention.reference import blocked_window_attention
from ahn.training import Distiller
from ahn.training.losses import IGNORE
from backend_rows import replace_reason
from tiny_models import SHIPPED, new_model, over_cells, random_ids

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device"),
]


WHOLE = [(2048, 256, False), (1000, 256, False), (700, 512, False), (300, 512, False)]
BEYOND = [(2048, 256, True), (1152, 512, True), (1024, 512, True), (700, 512, True)]


@pytest.mark.parametrize("batch", [1, 2])
@pytest.mark.parametrize("sinks", [0, 128])
@pytest.mark.parametrize(("length", "window", "beyond"), [*WHOLE, *BEYOND, (641, 512, True)])
def test_window_attention_and_its_gradients(length, window, beyond, sinks, batch):
    """Of all tokens, or of those beyond the budget; errors are those of half precision."""
    first = sinks + window if beyond else 0

    def draw(heads):
        return torch.randn(batch, length, heads, 128, device=DEVICE).bfloat16().transpose(1, 2)

    leaves, wanted = [draw(8), draw(2), draw(2)], draw(8)[:, :, first:]

    def run(form, tensors, *options):
        tensors = [x.detach().requires_grad_() for x in tensors]
        query, key, value = tensors
        seen = (key, value, key[:, :, :sinks], value[:, :, :sinks])
        out = form(query[:, :, first:], *seen, *options)
        return [out, *torch.autograd.grad(out, tensors, wanted.to(out.dtype))]

    def ours(*tensors):
        return window_attention(*tensors, window=window, start=0)

    plain = (window, 0, None, 0.0)
    exact = run(blocked_window_attention, [x.double() for x in leaves], *plain)
    general = run(blocked_window_attention, leaves, *plain)
    for name, a, b, c in zip(("out", "query", "key", "value"), run(ours, leaves), exact, general):
        assert difference(a, b) <= 1.5 * difference(c, b) + 2**-9, name


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_losses_of_logits(dtype):
    student, teacher = (3 * torch.randn(2, 64, 151936, device=DEVICE)).to(dtype)
    targets = torch.randint(151936, (64,), device=DEVICE)
    targets[::3] = IGNORE
    counts = torch.arange(64, device=DEVICE) % 2 == 0
    known = (teacher, targets, counts, (0.5, 2.0), True)
    sums, slope = logit_losses(student, *known, kernels="torch")
    ours, gradient = logit_losses(student, *known, kernels="triton")
    torch.testing.assert_close(ours, sums, rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(gradient, slope, rtol=2**-7, atol=1e-5)


@pytest.mark.parametrize("cell", SHIPPED)
@pytest.mark.parametrize("heads", [3, 16, 40])
def test_norm_and_gate(cell, heads):
    cell = build_memory(cell, 64, heads, 128).to(DEVICE)
    fused = cell.spec()
    torch.nn.init.normal_(fused.norm)
    hidden = torch.randn(2, 100, 64, device=DEVICE)
    read = torch.randn(2, 100, heads, 128, device=DEVICE, requires_grad=True)
    leaves, wanted = [read, fused.norm, cell.g_proj.weight], torch.randn_like(read)
    gate = cell.output_gate(hidden)
    ours = gated_norm(read, gate, fused, torch.float32, kernels="triton")
    exact = cell.gated_norm(read, hidden)
    torch.testing.assert_close(ours, exact, rtol=1e-4, atol=1e-4)
    found, expected = (torch.autograd.grad(x, leaves, wanted) for x in (ours, exact))
    for a, b in zip(found, expected):
        assert difference(a, b) < 1e-4


@pytest.mark.parametrize("tokens", [5, ROWS + 77])
def test_mlp_with_frozen_weights(tokens):
    mlp = Qwen2MLP(Qwen2Config(hidden_size=256, intermediate_size=704)).to(DEVICE).bfloat16()
    mlp.requires_grad_(False)
    exact_mlp = copy.deepcopy(mlp).double()
    x, wanted = (torch.randn(1, tokens, 256, device=DEVICE).bfloat16() for _ in range(2))
    assert unsupported_reason("gated_mlp", "triton", x, list(mlp.parameters())) is None
    found = []
    for form, dtype in ((partial(gated_mlp, mlp=mlp), x.dtype), (mlp, x.dtype), (exact_mlp, None)):
        leaf, slope = (y.to(dtype or torch.float64) for y in (x, wanted))
        leaf = leaf.detach().requires_grad_()
        out = checkpoint(form, leaf, use_reentrant=False)
        found.append([out, *torch.autograd.grad(out, leaf, slope)])
    for ours, general, exact in zip(*found):
        assert difference(ours, exact) <= 1.5 * difference(general, exact) + 2**-9


@pytest.mark.parametrize("length", [2048, 1000])
def test_saved_attention_is_that_of_the_first_run(length):
    """As a layer that is computed again for its gradient uses it."""
    leaves = [torch.randn(1, length, h, 128, device=DEVICE).bfloat16() for h in (8, 2, 2)]
    leaves = [x.transpose(1, 2).requires_grad_() for x in leaves]
    none = [x[:, :, :0].detach() for x in leaves[1:]]
    found = []
    for saved in (None, SavedOutputs()):

        def run(*tensors, saved=saved):
            if saved is not None:
                saved.start_run()
            return window_attention(*tensors, *none, window=256, start=0, saved=saved)

        out = checkpoint(run, *leaves, use_reentrant=False)
        found.append([out, *torch.autograd.grad(out.float().square().sum(), leaves)])
    for ours, expected in zip(*found):
        assert difference(ours, expected) < 2**-8


@over_cells
def test_a_step_in_half_precision(cell, monkeypatch):
    """Loss and gradients of a whole step err no more than those of plain PyTorch."""
    ids = random_ids(300).to(DEVICE)
    ours, exact = step(cell, ids, torch.bfloat16, "auto"), step(cell, ids, torch.float64, "torch")
    for op, name in (("window_attention", "cudnn"), ("logit_losses", "triton")):
        replace_reason(monkeypatch, op, name, lambda *_, **__: "the general path")
    general = step(cell, ids, torch.bfloat16, "torch")
    for name, gradient in exact.items():
        error, allowed = (difference(x[name], gradient) for x in (ours, general))
        assert error <= 2 * allowed + 0.03, name


def step(cell, ids, dtype, kernels):
    """Gradients by name, and the loss; the cells of a half-precision base are in float32."""
    model = new_model("Qwen2", cell, window=64, num_sinks=8).to(DEVICE, dtype)
    for layer in model.model.layers:
        layer.ahn.to(torch.promote_types(dtype, torch.float32))
    use_kernels(model, kernels)
    distiller = Distiller(model)
    with torch.autocast(DEVICE, torch.bfloat16, enabled=dtype == torch.bfloat16):
        losses = distiller(ids, ids, window=64, num_sinks=8)
    losses.loss.backward()
    found = {n: p.grad for n, p in distiller.named_parameters() if p.requires_grad}
    return {**found, "loss": losses.loss.detach()}
