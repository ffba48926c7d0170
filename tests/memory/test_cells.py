"""The contract of a cell, its names in released checkpoints, and the registry."""

from __future__ import annotations

import math
from importlib.metadata import EntryPoint, EntryPoints

import pytest
import torch

import ahn
from ahn.memory import (
    GATES,
    STATE,
    Evicted,
    Memory,
    build_memory,
    memory_by_name,
    register,
    registered_memories,
    registry,
)
from ahn.ops.gated_norm import gates_of
from tiny_models import (
    SHIPPED,
    assert_close,
    base_model,
    memory_parameters,
    new_model,
    over_cells,
)

HIDDEN, HEADS, GROUPS, DIM = 32, 4, 2, 8
RELEASED = {
    "GatedDeltaNet": "A_log D dt_bias a_proj.weight b_proj.weight g_proj.weight o_norm.weight "
    "o_proj.weight",
    "DeltaNet": "b_proj.weight g_proj.weight o_norm.weight o_proj.weight",
    "Mamba2": "A_log dt_bias dt_proj.weight dt_proj.bias g_proj.weight g_proj.bias norm.weight "
    "o_proj.weight",
}


def fresh(cell, **options):
    memory = build_memory(cell, HIDDEN, HEADS, DIM, **options).double()
    torch.nn.init.normal_(memory.o_proj.weight)
    return memory


def tokens(length, heads=HEADS, batch=2):
    return torch.randn(batch, length, heads, DIM, dtype=torch.float64)


def hidden_states(length, batch=2):
    return torch.randn(batch, length, HIDDEN, dtype=torch.float64)


def call(memory, hidden, query, key, value, past_gates=None, write_mask=None, state=None):
    """Read, state and gates of one call; keys and values `[B, E, G, K]`."""
    write_inputs = None if past_gates is None else {GATES: past_gates}
    position = torch.arange(key.shape[1])[None]
    key, value = key.transpose(1, 2), value.transpose(1, 2)
    evicted = Evicted(key, value, write_inputs, position, write_mask)
    output = memory(hidden, query, evicted, {} if state is None else {STATE: state})
    return output.read, output.states[STATE], output.write_inputs[GATES]


@over_cells
def test_shapes(cell):
    memory = fresh(cell)
    hidden, query = hidden_states(9), tokens(5)
    key, value = tokens(5, GROUPS), tokens(5, GROUPS)
    read, state, gates = call(memory, hidden, query, key, value)
    assert read.shape == (2, 5, HEADS, DIM)
    assert state.shape == (2, HEADS, DIM, DIM)
    assert gates.shape == (2, 9, HEADS, memory.num_gates)
    empty = memory.init_states(2, torch.device("cpu"), torch.float64)[STATE]
    assert torch.equal(empty, torch.zeros_like(state))
    again, _, _ = call(memory, hidden, query, key, value, state=empty.double())
    assert torch.equal(again, read)


@over_cells
@torch.no_grad()
def test_nothing_evicted_leaves_the_state_alone(cell):
    memory, state = fresh(cell), torch.randn(2, HEADS, DIM, DIM, dtype=torch.float64)
    none = tokens(0, GROUPS)
    read, same, gates = call(memory, hidden_states(3), tokens(0), none, none, state=state)
    assert same is state
    assert read.shape == (2, 0, HEADS, DIM)
    assert gates.shape[1] == 3


@over_cells
@torch.no_grad()
def test_cached_gates_are_those_of_the_oldest(cell):
    """Evicted tokens take the gates that came with them, then those of the new tokens."""
    memory, hidden = fresh(cell), hidden_states(12)
    query, key, value = tokens(7), tokens(7, GROUPS), tokens(7, GROUPS)
    whole = call(memory, hidden, query, key, value)[1]
    past = memory.write_gates(hidden[:, :5])
    parts = call(memory, hidden[:, 5:], query, key, value, past)[1]
    assert_close(parts, whole, 1e-12)


@over_cells
@torch.no_grad()
def test_a_token_that_is_not_kept_writes_nothing(cell):
    memory, hidden = fresh(cell), hidden_states(12)
    query, key, value = tokens(12), tokens(12, GROUPS), tokens(12, GROUPS)
    keep = torch.rand(1, 12) < 0.5
    state = torch.randn(2, HEADS, DIM, DIM, dtype=torch.float64)
    _, got, gates = call(memory, hidden, query, key, value, None, keep, state)
    kept = keep[0]
    arguments = (query[:, kept], key[:, kept], value[:, kept], gates[:, kept], None, state)
    assert_close(got, memory.write_and_read(*arguments)[1], 1e-12)
    nothing = call(memory, hidden, query, key, value, None, torch.zeros_like(keep), state)[1]
    assert_close(nothing, state, 1e-12)


@over_cells
@pytest.mark.parametrize("length", [3, 7])  # token by token, and as a chunk
def test_gradients_are_those_of_finite_differences(cell, length):
    memory, state = fresh(cell), torch.randn(1, HEADS, DIM, DIM, dtype=torch.float64)
    inputs = [hidden_states(length, 1), tokens(length, batch=1)]
    inputs += [tokens(length, GROUPS, 1), tokens(length, GROUPS, 1), state]
    parameters = list(memory.parameters())
    keep = torch.arange(length)[None] != 1

    def run(hidden, query, key, value, state, *_):
        read, state, _ = call(memory, hidden, query, key, value, None, keep, state)
        return read.sum(), state.sum()

    arguments = [*(x.requires_grad_() for x in inputs), *parameters]
    assert torch.autograd.gradcheck(run, arguments, fast_mode=True)


@over_cells
def test_every_parameter_gets_a_gradient(cell):
    model = new_model("Qwen2", cell, use_q_proj=True, use_router=True)
    ids = torch.randint(2, 97, (1, 60))
    model(ids, use_cache=False).logits.sin().sum().backward()
    for name, parameter in memory_parameters(model).items():
        assert parameter.grad.abs().max() > 0, name


@pytest.mark.parametrize("cell", RELEASED)
def test_released_names_and_none_of_the_base_is_renamed(cell):
    base_names = list(base_model().state_dict())
    model = ahn.attach(base_model(), ahn.AHNConfig(memory=cell, full_attention_layers=(1,)))
    names = list(model.state_dict())
    assert [name for name in names if ".ahn." not in name] == base_names
    added = {name for name in names if ".ahn." in name}
    assert added == {f"model.layers.0.ahn.fn.{name}" for name in RELEASED[cell].split()}


def test_names_of_the_optional_parts():
    settings = ahn.AHNConfig(memory="DeltaNet", use_q_proj=True, use_router=True)
    names = set(ahn.attach(base_model(), settings).state_dict()) - set(base_model().state_dict())
    assert {name for name in names if ".1." in name} == {
        "model.layers.1.ahn.fn.q_proj.weight",
        "model.layers.1.ahn_router.alpha",
        "model.layers.1.ahn_router.beta",
        *(f"model.layers.1.ahn.fn.{name}" for name in RELEASED["DeltaNet"].split()),
    }


def test_initial_values():
    gated, mamba = (build_memory(name, HIDDEN, 64, DIM) for name in ("GatedDeltaNet", "Mamba2"))
    assert gated.A_log.max() <= math.log(16)
    assert gated.A_log.exp().std() > 2  # spread over 0 to 16
    step = torch.nn.functional.softplus(gated.dt_bias)
    assert 1e-3 * 0.99 <= step.min() < 5e-3 < 0.03 < step.max() <= 0.1 * 1.01
    assert_close(mamba.A_log.exp(), torch.arange(1.0, 65), 1e-5)
    assert torch.equal(mamba.dt_bias, torch.ones(64))
    for cell in (gated, mamba):
        assert not cell.o_proj.weight.any()
        assert 0.01 < cell.g_proj.weight.std() < 0.03


def test_an_unknown_cell_is_refused_by_name():
    with pytest.raises(ValueError, match=r"memory: expected one of .*Mamba2.*, got 'LSTM'"):
        ahn.attach(base_model(), ahn.AHNConfig(memory="LSTM"))


def test_a_name_is_registered_once():
    with pytest.raises(ValueError, match="expected an unused name, got 'DeltaNet'"):
        register(type("DeltaNet", (Memory,), {}))
    delta_net = memory_by_name("DeltaNet")
    assert register(delta_net) is delta_net


def test_cells_of_other_packages_come_by_entry_point(monkeypatch):
    point = EntryPoint("Theirs", "ahn.memory:DeltaNet", "ahn.memories")

    def entry_points(group, name=None):
        assert group == "ahn.memories"
        return EntryPoints([point] if name in (None, "Theirs") else [])

    monkeypatch.setattr(registry, "entry_points", entry_points)
    assert memory_by_name("Theirs") is memory_by_name("DeltaNet")
    assert "Theirs" in registered_memories()


@pytest.mark.parametrize("cell", SHIPPED)
def test_gates_of_one_product_equal_those_of_several(cell):
    memory, hidden = fresh(cell), hidden_states(7).requires_grad_()
    maps = [x for m in memory.spec().gate_maps for x in (m.weight, m.bias) if x is not None]
    apart = (memory.write_gates(hidden), memory.output_gate(hidden))
    found = []
    for gates in (gates_of(hidden, memory.spec()), apart):
        total = sum((i + 1) * x.sin().sum() for i, x in enumerate(gates))
        found.append([*gates, *torch.autograd.grad(total, [hidden, *maps])])
    for one, other in zip(*found):
        assert_close(one, other, 1e-12)
