"""Law: fast kernels equal the PyTorch reference, as far as bfloat16 carries."""

from __future__ import annotations

import pytest
import torch
from measures import DEVICE, difference
from torch.utils.checkpoint import checkpoint

from ahn.memory import STATE, Evicted, build_memory
from ahn.ops.delta_rule import delta_rule
from ahn.ops.ssd import ssd
from tiny_models import over_shipped

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device"),
]
LENGTHS = [1, 63, 64, 65, 1000, 5000]  # the last two are cut into segments
BATCH, HEADS, GROUPS, DIM, HIDDEN = 2, 4, 2, 64, 96
OPS = {
    "delta_rule": (delta_rule, ("beta",)),
    "gated_delta_rule": (delta_rule, ("beta", "log_decay")),
    "ssd": (ssd, ("log_decay", "dt")),
}
HALF = ("query", "key", "value")
over_ops = pytest.mark.parametrize("name", OPS)


def draw(*shape):
    return torch.randn(*shape, dtype=torch.float64, device=DEVICE)


def draw_arguments(name, length, dim=DIM, width=DIM):
    """Raw queries and keys; heads that decay slowly and fast; some tokens write nothing.

    Queries, keys and values lie in memory head by head, as models hand them over.
    """
    keep = (torch.rand(BATCH, length, 1, device=DEVICE) < 0.9).double()
    speed = torch.tensor([1e-3, 0.1, 1.0, 8.0], dtype=torch.float64, device=DEVICE)
    every = {
        "query": 3 * draw(BATCH, HEADS, length, dim).transpose(1, 2),
        "key": 5 * draw(BATCH, GROUPS, length, dim).transpose(1, 2),
        "value": draw(BATCH, GROUPS, length, width).transpose(1, 2),
        "beta": draw(BATCH, length, HEADS).sigmoid() * keep,
        "log_decay": -speed * draw(BATCH, length, HEADS).abs() * keep,
        "dt": draw(BATCH, length, HEADS).abs() * keep,
        "initial_state": draw(BATCH, HEADS, dim, width),
    }
    return {key: every[key] for key in (*HALF, *OPS[name][1], "initial_state")}


def typed(arguments, dtype=torch.bfloat16):
    """Gates and state stay in float32, as the cells give them."""
    exact = dtype == torch.float64
    return {
        key: x.to(dtype if exact or key in HALF else torch.float32) for key, x in arguments.items()
    }


def call(name, kernels, arguments):
    scale = {} if name == "ssd" else {"scale": 0.3}
    return OPS[name][0](**arguments, **scale, normalize=True, kernels=kernels)


def run_op(name, kernels, arguments, dtype, run=call):
    """Output, final state and all gradients."""
    leaves = {key: x.detach().requires_grad_() for key, x in typed(arguments, dtype).items()}
    output, state = run(name, kernels, leaves)
    (output.sin().sum() + state.sin().sum()).backward()
    gradients = {f"gradient of {key}": x.grad for key, x in leaves.items()}
    return {"output": output.detach(), "final state": state.detach(), **gradients}


def assert_errs_no_more(name, arguments, what):
    """Both from bfloat16, against float64.

    The kernels round states, outputs and gradients of these to bfloat16, PyTorch does not. A
    gradient of log decay sums products of all three over a head, of either sign: what cancels
    leaves the error, up to some 2^-8 of what remains where a single token has nothing to average.
    """
    exact = run_op(name, "torch", arguments, torch.float64)
    reference = run_op(name, "torch", arguments, torch.bfloat16)
    kernel = run_op(name, "triton", arguments, torch.bfloat16)
    for key, expected in exact.items():
        rounded = 2**-7 if key == "gradient of log_decay" else 2**-9
        allowed = 2.5 * difference(reference[key], expected) + rounded
        got = difference(kernel[key], expected)
        assert got <= allowed, f"{what}: {key}: {got:.1e} > {allowed:.1e}"


@over_ops
def test_results_and_gradients_err_no_more_than_by_pytorch(name):
    for length in LENGTHS:
        assert_errs_no_more(name, draw_arguments(name, length), f"{length} tokens")


@over_ops
@pytest.mark.parametrize("sizes", [(16, 16), (24, 80), (128, 128)], ids=str)
def test_head_sizes_may_be_any(name, sizes):
    assert_errs_no_more(name, draw_arguments(name, 700, *sizes), f"heads of {sizes}")


@over_ops
@torch.no_grad()
def test_parts_equal_the_whole_and_a_graph_replays_it(name):
    arguments = typed(draw_arguments(name, 1337))
    output, final = call(name, "triton", arguments)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        captured = call(name, "triton", arguments)
    graph.replay()
    assert torch.equal(captured[0], output)
    assert torch.equal(captured[1], final)
    state, parts = arguments.pop("initial_state"), []
    for part in (slice(0, 640), slice(640, 1337)):
        piece = {key: x[:, part] for key, x in arguments.items()}
        read, state = call(name, "triton", {**piece, "initial_state": state})
        parts.append(read)
    # Either rounds the states of its chunks to bfloat16, 2^-9 apart at most; without decay these
    # differences stay until they are written over.
    assert difference(torch.cat(parts, 1), output.double()) < 2**-7
    assert difference(state, final.double()) < 2**-7


@over_ops
def test_gradients_are_the_same_when_checkpointed_under_autocast(name):
    arguments = draw_arguments(name, 200)

    def recomputed(reentrant):
        def run(*call_arguments):
            def of_tensors(*tensors):
                return call(*call_arguments[:2], dict(zip(call_arguments[2], tensors)))

            tensors = call_arguments[2].values()
            with torch.autocast(DEVICE, torch.bfloat16):
                return checkpoint(of_tensors, *tensors, use_reentrant=reentrant)

        return run

    plain = run_op(name, "triton", arguments, torch.bfloat16)
    for reentrant in (True, False):
        again = run_op(name, "triton", arguments, torch.bfloat16, recomputed(reentrant))
        for key, expected in plain.items():
            assert torch.equal(again[key], expected), (key, reentrant)


def run_cell(name, kernels, dtype, weights, inputs):
    cell = build_memory(name, HIDDEN, HEADS, DIM, kernels=kernels).to(DEVICE, torch.float64)
    cell.load_state_dict(weights)
    cell.to(dtype)
    *tokens, state = inputs
    state_dtype = torch.float64 if dtype == torch.float64 else torch.float32
    hidden, query, key, value = (x.to(dtype) for x in tokens)
    position = torch.arange(key.shape[1], device=DEVICE)[None]
    evicted = Evicted(key.transpose(1, 2), value.transpose(1, 2), None, position, None)
    output = cell(hidden, query, evicted, {STATE: state.to(state_dtype)})
    return {"read": output.read, "final state": output.states[STATE]}


@over_shipped
@torch.no_grad()
def test_a_cell_errs_no_more_than_by_pytorch(cell):
    fresh = build_memory(cell, HIDDEN, HEADS, DIM).to(DEVICE, torch.float64)
    torch.nn.init.normal_(fresh.o_proj.weight, std=0.3)
    weights = fresh.state_dict()
    for length in (4, 5, 1000):
        inputs = [draw(BATCH, length, HIDDEN), draw(BATCH, length, HEADS, DIM)]
        inputs += [draw(BATCH, length, GROUPS, DIM), draw(BATCH, length, GROUPS, DIM)]
        inputs += [draw(BATCH, HEADS, DIM, DIM)]
        exact = run_cell(cell, "torch", torch.float64, weights, inputs)
        reference = run_cell(cell, "torch", torch.bfloat16, weights, inputs)
        kernel = run_cell(cell, "auto", torch.bfloat16, weights, inputs)
        for name, expected in exact.items():
            assert kernel[name].dtype == reference[name].dtype
            allowed = 2 * difference(reference[name], expected) + 2**-9
            assert difference(kernel[name], expected) <= allowed, (name, length)


def test_what_cannot_run_is_refused_with_the_reason():
    x, beta = torch.zeros(1, 9, 1, 32, device=DEVICE), torch.zeros(1, 9, 1, device=DEVICE)
    with pytest.raises(ValueError, match="kernels='triton': expected bfloat16"):
        delta_rule(x, x, x, beta, kernels="triton")
    wide = torch.zeros(1, 9, 1, 512, device=DEVICE, dtype=torch.bfloat16)
    with pytest.raises(ValueError, match="kernels='triton': expected a head size of at most"):
        delta_rule(wide, wide, wide, beta, kernels="triton")
