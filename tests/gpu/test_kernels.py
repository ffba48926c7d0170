"""Law: fast kernels equal the PyTorch reference, as far as bfloat16 carries."""

from __future__ import annotations

import pytest
import torch

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


FAST = ["fla", "triton"]


@pytest.fixture(autouse=True)
def _needs_fla(request):
    if "fla" in request.node.name:
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
@pytest.mark.parametrize("kernels", FAST)
@pytest.mark.parametrize("length", LENGTHS)
@torch.no_grad()
def test_a_cell_errs_no_more_than_by_pytorch(cell, kernels, length):
    """Both in bfloat16, against float64."""
    fresh = build_cell(cell, HIDDEN, HEADS, DIM).to(DEVICE, torch.float64)
    torch.nn.init.normal_(fresh.o_proj.weight, std=0.3)
    weights = fresh.state_dict()
    inputs = [draw(BATCH, length, HIDDEN), draw(BATCH, length, HEADS, DIM)]
    inputs += [draw(BATCH, length, GROUPS, DIM), draw(BATCH, length, GROUPS, DIM)]
    inputs += [draw(BATCH, HEADS, DIM, DIM)]
    exact = run_cell(cell, "torch", torch.float64, weights, inputs)
    reference = run_cell(cell, "torch", torch.bfloat16, weights, inputs)
    kernel = run_cell(cell, kernels, torch.bfloat16, weights, inputs)
    for name, expected in exact.items():
        assert kernel[name].dtype == reference[name].dtype
        allowed = 2 * error(reference[name], expected) + 2**-9
        assert error(kernel[name], expected) <= allowed, name


OPS = {
    "delta_rule": (delta_rule, ("beta",)),
    "gated_delta_rule": (delta_rule, ("beta", "log_decay")),
    "ssd": (ssd, ("log_decay", "step")),
}
over_ops = pytest.mark.parametrize("name", OPS)
HALF = ("query", "key", "value")


def draw_arguments(name, length, dim=DIM, width=DIM):
    """Raw queries and keys; heads that decay slowly and fast; some tokens write nothing."""
    keep = (torch.rand(BATCH, length, 1, device=DEVICE) < 0.9).double()
    speed = torch.tensor([1e-3, 0.1, 1.0, 8.0], dtype=torch.float64, device=DEVICE)
    every = {
        "query": 3 * draw(BATCH, length, HEADS, dim),
        "key": 5 * draw(BATCH, length, GROUPS, dim),
        "value": draw(BATCH, length, GROUPS, width),
        "beta": draw(BATCH, length, HEADS).sigmoid() * keep,
        "log_decay": -speed * draw(BATCH, length, HEADS).abs() * keep,
        "step": draw(BATCH, length, HEADS).abs() * keep,
        "initial_state": draw(BATCH, HEADS, dim, width),
    }
    return {key: every[key] for key in (*HALF, *OPS[name][1], "initial_state")}


def call(name, kernels, leaves):
    scale = {} if name == "ssd" else {"scale": 0.3}
    return OPS[name][0](**leaves, **scale, normalize=True, kernels=kernels)


def run_op(name, kernels, arguments, dtype):
    """Output, final state and gradients; gates and state stay in float32 as the cells give them."""
    exact = dtype == torch.float64
    leaves = {
        key: x.to(dtype if exact or key in HALF else torch.float32).detach()
        for key, x in arguments.items()
    }
    if not torch.is_grad_enabled():
        return dict(zip(("output", "final state"), call(name, kernels, leaves)))
    leaves = {key: x.requires_grad_() for key, x in leaves.items()}
    output, state = call(name, kernels, leaves)
    (output.sin().sum() + state.sin().sum()).backward()
    gradients = {f"gradient of {key}": x.grad for key, x in leaves.items()}
    return {"output": output.detach(), "final state": state.detach(), **gradients}


def assert_errs_no_more(name, kernels, arguments, factor, least):
    exact = run_op(name, "torch", arguments, torch.float64)
    reference = run_op(name, "torch", arguments, torch.bfloat16)
    kernel = run_op(name, kernels, arguments, torch.bfloat16)
    for key, expected in exact.items():
        allowed = factor * error(reference[key], expected) + least
        assert error(kernel[key], expected) <= allowed, key


@over_ops
@pytest.mark.parametrize("kernels", FAST)
@pytest.mark.parametrize("length", [1, 63, 64, 65, 1000, 5000])
@torch.no_grad()
def test_an_op_errs_no_more_than_by_pytorch(name, kernels, length):
    """The longest has many segments."""
    assert_errs_no_more(name, kernels, draw_arguments(name, length), 2, 2**-9)


@over_ops
@pytest.mark.parametrize("sizes", [(16, 16), (24, 80), (80, 24), (128, 128), (128, 40)], ids=str)
@torch.no_grad()
def test_head_sizes_may_be_any(name, sizes):
    assert_errs_no_more(name, "triton", draw_arguments(name, 1500, *sizes), 2, 2**-9)


@over_ops
@torch.no_grad()
def test_strided_inputs_in_parts_equal_whole(name):
    arguments = {
        key: x.to(torch.bfloat16 if key in HALF else torch.float32)
        for key, x in draw_arguments(name, 1337).items()
    }
    output, final = call(name, "triton", arguments)
    for key in HALF:
        arguments[key] = arguments[key].transpose(1, 2).contiguous().transpose(1, 2)
    state, parts = arguments.pop("initial_state"), []
    for part in (slice(0, 640), slice(640, 1337)):
        piece = {key: x[:, part] for key, x in arguments.items()}
        read, state = call(name, "triton", {**piece, "initial_state": state})
        parts.append(read)
    assert error(torch.cat(parts, 1), output.double()) < 2**-8
    assert error(state, final.double()) < 2**-8


@over_ops
@torch.no_grad()
def test_a_graph_replays_the_kernels(name):
    arguments = {
        key: x.to(torch.bfloat16 if key in HALF else torch.float32)
        for key, x in draw_arguments(name, 3000).items()
    }
    expected = call(name, "triton", arguments)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        got = call(name, "triton", arguments)
    graph.replay()
    for mine, theirs in zip(got, expected):
        assert torch.equal(mine, theirs)


@over_ops
@pytest.mark.parametrize("length", LENGTHS)
def test_gradients_by_the_automatic_choice_err_no_more_than_by_pytorch(name, length):
    assert_errs_no_more(name, "auto", draw_arguments(name, length), 3, 2**-8)


def test_what_cannot_run_is_refused_with_the_reason():
    x, beta = torch.zeros(1, 9, 1, 32, device=DEVICE), torch.zeros(1, 9, 1, device=DEVICE)
    with pytest.raises(ValueError, match="kernels='triton': expected bfloat16"):
        delta_rule(x, x, x, beta, kernels="triton")
    wide = torch.zeros(1, 9, 1, 512, device=DEVICE, dtype=torch.bfloat16)
    with pytest.raises(ValueError, match="kernels='triton': expected a head size of at most"):
        delta_rule(wide, wide, wide, beta, kernels="triton")


def test_fla_refuses_float32_and_wide_heads_with_the_reason():
    x, beta = torch.zeros(1, 9, 1, 32, device=DEVICE), torch.zeros(1, 9, 1, device=DEVICE)
    with pytest.raises(ValueError, match="kernels='fla': expected float16 or bfloat16"):
        delta_rule(x, x, x, beta, kernels="fla")
    wide = torch.zeros(1, 9, 1, 512, device=DEVICE, dtype=torch.bfloat16)
    with pytest.raises(ValueError, match="kernels='fla': expected a head size of at most 256"):
        delta_rule(wide, wide, wide, beta, kernels="fla")
