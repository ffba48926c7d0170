"""Law: flash-linear-attention's kernels equal the PyTorch reference, as far as bfloat16 carries."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F

from ahn.memory import build_cell
from ahn.ops.delta_rule import delta_rule
from ahn.ops.ssd import ssd
from models import over_cells

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device"),
]
DEVICE = "cuda"
LENGTHS = [1, 4, 5, 63, 64, 65, 1000]
BATCH, HEADS, GROUPS, DIM, HIDDEN = 2, 4, 2, 64, 96


@pytest.fixture(autouse=True)
def _needs_fla():
    pytest.importorskip("fla")


def draw(*shape):
    return torch.randn(*shape, dtype=torch.float64, device=DEVICE)


def error(got, exact):
    """Relative to the exact result, over all numbers."""
    return ((got.double() - exact).norm() / exact.norm()).item()


def run_cell(name, kernels, dtype, weights, inputs):
    cell = build_cell(name, HIDDEN, HEADS, DIM, kernels=kernels).to(DEVICE, torch.float64)
    cell.load_state_dict(weights)
    cell.to(dtype)
    *tokens, state = inputs
    state_dtype = torch.float64 if dtype == torch.float64 else torch.float32
    tokens = [x.to(dtype) for x in tokens]
    read, final, _ = cell(*tokens, None, None, state.to(state_dtype))
    return {"read": read, "final state": final}


@over_cells
@pytest.mark.parametrize("length", LENGTHS)
@torch.no_grad()
def test_a_cell_by_fla_errs_no_more_than_by_pytorch(cell, length):
    """Both in bfloat16, against float64."""
    fresh = build_cell(cell, HIDDEN, HEADS, DIM).to(DEVICE, torch.float64)
    torch.nn.init.normal_(fresh.o_proj.weight, std=0.3)
    weights = fresh.state_dict()
    inputs = [draw(BATCH, length, HIDDEN), draw(BATCH, length, HEADS, DIM)]
    inputs += [draw(BATCH, length, GROUPS, DIM), draw(BATCH, length, GROUPS, DIM)]
    inputs += [draw(BATCH, HEADS, DIM, DIM)]
    exact = run_cell(cell, "torch", torch.float64, weights, inputs)
    reference = run_cell(cell, "torch", torch.bfloat16, weights, inputs)
    kernel = run_cell(cell, "fla", torch.bfloat16, weights, inputs)
    for name, expected in exact.items():
        assert kernel[name].dtype == reference[name].dtype
        allowed = 2 * error(reference[name], expected) + 2**-9
        assert error(kernel[name], expected) <= allowed, name


OPS = {
    "delta_rule": (delta_rule, ("beta",)),
    "gated_delta_rule": (delta_rule, ("beta", "log_decay")),
    "ssd": (ssd, ("log_decay",)),
}


def run_op(name, kernels, arguments, dtype):
    """Output, final state and gradients; gates and state stay in float32 as the cells give them."""
    op, _ = OPS[name]
    exact = dtype == torch.float64
    leaves = {
        key: x.to(dtype if exact or key in ("query", "key", "value") else torch.float32)
        .detach()
        .requires_grad_()
        for key, x in arguments.items()
    }
    output, state = op(**leaves, kernels=kernels)
    (output.sin().sum() + state.sin().sum()).backward()
    gradients = {f"gradient of {key}": x.grad for key, x in leaves.items()}
    return {"output": output.detach(), "final state": state.detach(), **gradients}


@pytest.mark.parametrize("name", OPS)
@pytest.mark.parametrize("length", LENGTHS)
def test_gradients_by_the_automatic_choice_err_no_more_than_by_pytorch(name, length):
    every = {
        "query": F.normalize(draw(BATCH, length, HEADS, DIM), dim=-1),
        "key": F.normalize(draw(BATCH, length, GROUPS, DIM), dim=-1),
        "value": draw(BATCH, length, GROUPS, DIM),
        "beta": draw(BATCH, length, HEADS).sigmoid(),
        "log_decay": -0.1 * draw(BATCH, length, HEADS).abs(),
        "initial_state": draw(BATCH, HEADS, DIM, DIM),
    }
    wanted = ("query", "key", "value", *OPS[name][1], "initial_state")
    arguments = {key: every[key] for key in wanted}
    exact = run_op(name, "torch", arguments, torch.float64)
    reference = run_op(name, "torch", arguments, torch.bfloat16)
    kernel = run_op(name, "auto", arguments, torch.bfloat16)
    for key, expected in exact.items():
        allowed = 3 * error(reference[key], expected) + 2**-8
        assert error(kernel[key], expected) <= allowed, key


def test_float32_and_wide_heads_are_refused_with_the_reason():
    x, beta = torch.zeros(1, 9, 1, 32, device=DEVICE), torch.zeros(1, 9, 1, device=DEVICE)
    with pytest.raises(ValueError, match="kernels='fla': expected float16 or bfloat16"):
        delta_rule(x, x, x, beta, kernels="fla")
    wide = torch.zeros(1, 9, 1, 512, device=DEVICE, dtype=torch.bfloat16)
    with pytest.raises(ValueError, match="kernels='fla': expected a head size of at most 256"):
        delta_rule(wide, wide, wide, beta, kernels="fla")
