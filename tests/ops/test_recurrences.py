"""Laws of the recurrences: chunk = token by token, split = whole, masked writes write nothing."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F

from ahn.ops import delta_rule as delta
from ahn.ops import ssd as state_space
from ahn.ops.recurrence import RECURRENT_LENGTH
from tiny_models import assert_close

BATCH, HEADS, KEY, VALUE = 2, 4, 12, 20
LENGTHS = [1, 63, 64, 65, 1000]
RECURRENCES = {  # the dispatching op, its two forms, and which gates it takes
    "delta_rule": (
        delta.delta_rule,
        delta.chunk_delta_rule,
        delta.recurrent_delta_rule,
        ("beta",),
    ),
    "gated_delta_rule": (
        delta.delta_rule,
        delta.chunk_delta_rule,
        delta.recurrent_delta_rule,
        ("beta", "log_decay"),
    ),
    "ssd": (
        state_space.ssd,
        state_space.chunk_ssd,
        state_space.recurrent_ssd,
        ("log_decay",),
    ),
}
over_recurrences = pytest.mark.parametrize("name", RECURRENCES)


def inputs(name: str, length: int, *, groups: int = 2, dtype=torch.float64) -> dict:
    """Arguments of a recurrence, as a cell would make them; some heads decay fast."""
    generator = torch.Generator().manual_seed(length)

    def draw(*shape):
        return torch.randn(BATCH, *shape, generator=generator, dtype=torch.float64)

    speed = torch.tensor([0.001, 0.05, 1.0, 8.0], dtype=torch.float64)
    every = {
        "query": F.normalize(draw(length, HEADS, KEY), dim=-1),
        "key": F.normalize(draw(length, groups, KEY), dim=-1),
        "value": draw(length, groups, VALUE),
        "beta": draw(length, HEADS).sigmoid(),
        "log_decay": -speed * draw(length, HEADS).abs(),
        "initial_state": draw(HEADS, KEY, VALUE),
    }
    wanted = ("query", "key", "value", *RECURRENCES[name][3], "initial_state")
    return {key: every[key].to(dtype) for key in wanted}


def run_with_gradients(function, arguments: dict) -> dict[str, torch.Tensor]:
    """Output, final state, and the gradient of every argument."""
    leaves = {key: x.clone().requires_grad_() for key, x in arguments.items()}
    output, state = function(**leaves)
    (output.sin().sum() + state.sin().sum()).backward()
    gradients = {f"gradient of {key}": x.grad for key, x in leaves.items()}
    return {"output": output, "final state": state, **gradients}


@over_recurrences
@pytest.mark.parametrize("length", LENGTHS)
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32], ids=str)
def test_chunk_equals_recurrent(name, length, dtype):
    _, chunk, recurrent, _ = RECURRENCES[name]
    arguments = inputs(name, length, dtype=dtype)
    expected = run_with_gradients(recurrent, arguments)
    got = run_with_gradients(chunk, arguments)
    for key, value in expected.items():
        assert got[key].dtype == dtype
        assert_close(got[key], value, 1e-11 if dtype == torch.float64 else 5e-5, key)


@over_recurrences
@torch.no_grad()
def test_the_recurrent_form_is_the_definition(name):
    """One head at a time, from the formula: S <- a S + k (beta (v - k^T a S))^T or a S + k v^T."""
    arguments = inputs(name, 9, groups=2)
    output, final = RECURRENCES[name][2](**arguments)
    for row in range(BATCH):
        for head in range(HEADS):
            group = head // 2
            state = arguments["initial_state"][row, head]
            for t in range(9):
                query = arguments["query"][row, t, head]
                key, value = (arguments[x][row, t, group] for x in ("key", "value"))
                if "log_decay" in arguments:
                    state = arguments["log_decay"][row, t, head].exp() * state
                if "beta" in arguments:
                    value = arguments["beta"][row, t, head] * (value - key @ state)
                state = state + torch.outer(key, value)
                assert_close(output[row, t, head], query @ state, 1e-12)
            assert_close(final[row, head], state, 1e-12)


@over_recurrences
@torch.no_grad()
def test_without_a_state_it_starts_from_zeros(name):
    op, chunk, recurrent, _ = RECURRENCES[name]
    arguments = inputs(name, 70)
    zeros = {**arguments, "initial_state": torch.zeros_like(arguments["initial_state"])}
    del arguments["initial_state"]
    for form in (op, chunk, recurrent):
        for got, expected in zip(form(**arguments), form(**zeros)):
            assert torch.equal(got, expected)


@over_recurrences
@pytest.mark.parametrize("cut", [1, 64, 100])
@torch.no_grad()
def test_in_two_parts_equals_whole(name, cut):
    op = RECURRENCES[name][0]
    arguments = inputs(name, 130)
    output, final = op(**arguments)
    state = arguments.pop("initial_state")
    parts = []
    for part in (slice(0, cut), slice(cut, 130)):
        piece, state = op(**{k: x[:, part] for k, x in arguments.items()}, initial_state=state)
        parts.append(piece)
    assert_close(torch.cat(parts, 1), output, 1e-12)
    assert_close(state, final, 1e-12)


@over_recurrences
@pytest.mark.parametrize("length", [3, 150])
@torch.no_grad()
def test_masked_writes_leave_the_state_as_it_is(name, length):
    op = RECURRENCES[name][0]
    arguments = inputs(name, length, groups=HEADS)
    keep = torch.rand(BATCH, length) < 0.5
    keep[0], keep[1, 0], keep[1, -1] = False, True, False
    for gate in ("beta", "log_decay"):
        if gate in arguments:
            arguments[gate] = arguments[gate] * keep[..., None]
    if "beta" not in arguments:  # there dt, a factor of the key, is what masks
        arguments["key"] = arguments["key"] * keep[..., None, None]
    output, state = op(**arguments)
    assert_close(state[0], arguments["initial_state"][0], 1e-12)
    kept = {k: x if k == "initial_state" else x[1:, keep[1]] for k, x in arguments.items()}
    kept["initial_state"] = kept["initial_state"][1:]
    expected, expected_state = op(**kept)
    assert_close(output[1:, keep[1]], expected, 1e-12)
    assert_close(state[1:], expected_state, 1e-12)


@over_recurrences
@torch.no_grad()
def test_grouped_heads_are_repeated(name):
    op = RECURRENCES[name][0]
    arguments = inputs(name, 70)
    repeated = dict(arguments)
    for key in ("key", "value"):
        repeated[key] = arguments[key].repeat_interleave(2, dim=2)
    for got, expected in zip(op(**arguments), op(**repeated)):
        assert torch.equal(got, expected)


@over_recurrences
@pytest.mark.parametrize("length", [1, RECURRENT_LENGTH, RECURRENT_LENGTH + 1, 65])
@torch.no_grad()
def test_the_choice_of_form_changes_nothing(name, length):
    op, chunk, recurrent, _ = RECURRENCES[name]
    arguments = inputs(name, length)
    for form in (chunk, recurrent):
        for got, expected in zip(op(**arguments), form(**arguments)):
            assert_close(got, expected, 1e-12)


@over_recurrences
@torch.no_grad()
def test_half_precision_inputs_give_a_float32_state_and_strong_decay_stays_finite(name):
    op = RECURRENCES[name][0]
    arguments = inputs(name, 200, dtype=torch.bfloat16)
    if "log_decay" in arguments:
        arguments["log_decay"] = arguments["log_decay"] * 50
    output, state = op(**arguments)
    assert output.dtype == state.dtype == torch.float32
    assert output.isfinite().all()
    assert state.isfinite().all()


@over_recurrences
def test_shapes_that_do_not_fit_are_refused(name):
    op = RECURRENCES[name][0]
    good = inputs(name, 8)
    with pytest.raises(ValueError, match="initial_state: expected"):
        op(**{**good, "initial_state": good["initial_state"][:, :2]})
    with pytest.raises(ValueError, match="recurrence: expected key"):
        op(**{**good, "key": good["key"][:, :7]})
    with pytest.raises(ValueError, match="recurrence: expected key"):
        op(**{**good, "value": good["value"][:, :, :1]})
    with pytest.raises(ValueError, match="heads: expected a multiple of 3"):
        op(**{**good, "key": torch.zeros(2, 8, 3, KEY), "value": torch.zeros(2, 8, 3, VALUE)})


@over_recurrences
@pytest.mark.parametrize("length", [1, 65])
def test_autocast_does_not_round_the_recurrence(name, length):
    op, arguments = RECURRENCES[name][0], inputs(name, length, dtype=torch.float32)
    expected = run_with_gradients(op, arguments)

    def under_autocast(**inputs):
        with torch.autocast("cpu", torch.bfloat16):
            return op(**inputs)

    got = run_with_gradients(under_autocast, arguments)
    for key, value in expected.items():
        assert torch.equal(got[key], value), key
