"""CONTRIBUTING.md, "Add a cell": its cell, from a package of its own, and the laws on it."""

from __future__ import annotations

import pytest
import torch
from transformers import AutoModelForCausalLM

import ahn
from ahn.memory.cell import Cell
from ahn.memory.registry import memory_by_name, register
from ahn.ops.layout import l2_normalize, repeat_heads
from packages import install
from tiny_models import (
    FAMILIES,
    WINDOW,
    assert_close,
    base_model,
    left_padded,
    new_model,
    one_shot,
    pieces,
    positions_of,
    random_ids,
    read,
    shared_base,
    shared_model,
)

SOURCE = '''\
import torch
from torch import nn

from ahn.memory.cell import Cell
from ahn.memory.parts import GatedRMSNorm, masked
from ahn.memory.registry import register
from ahn.ops.layout import compute_dtype, l2_normalize, repeat_heads


@register
class LinearAttention(Cell):
    """S <- S + beta k v^T, read q^T S; q and k L2-normalised (arXiv 2006.16236)."""

    num_gates = 1

    def __init__(self, hidden_size, num_heads, head_dim, **options):
        super().__init__(hidden_size, num_heads, head_dim, **options)
        self.b_proj = nn.Linear(hidden_size, num_heads, bias=False)
        self.g_proj = nn.Linear(hidden_size, num_heads, bias=False)
        self.norm = GatedRMSNorm(head_dim)

    def write_gates(self, hidden):
        return self.b_proj(hidden)[..., None]

    def write_and_read(self, query, key, value, gates, write_mask, state):
        dtype, heads = compute_dtype(query), query.shape[2]
        query, key = l2_normalize(query), l2_normalize(repeat_heads(key, heads))
        beta = masked(gates[..., 0].to(dtype).sigmoid(), write_mask)
        value = beta[..., None] * repeat_heads(value, heads)
        if state is None:
            state = query.new_zeros(len(query), heads, self.head_dim, self.head_dim)
        scores = torch.einsum("bihk,bjhk->bhij", query, key).tril()  # reader i sees writes 1 to i
        read = torch.einsum("bhij,bjhv->bihv", scores, value)
        read = read + torch.einsum("bihk,bhkv->bihv", query, state)
        return read, state + torch.einsum("bjhk,bjhv->bhkv", key, value)

    def gated_norm(self, read, hidden):
        return self.norm(read, self.g_proj(hidden)[..., None])
'''

CELL, LENGTH, BUDGET = "LinearAttention", 100, WINDOW + 4
over_families = pytest.mark.parametrize("family", FAMILIES)


@pytest.fixture(scope="module", autouse=True)
def _installed(tmp_path_factory):
    """The cell is found by its entry point, as in step 2."""
    folder = tmp_path_factory.mktemp("package")
    install(folder, "linear_attention", SOURCE, "ahn.memories", CELL)
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(folder)
        assert memory_by_name(CELL).__module__ == "linear_attention"
        yield


@register
class Ungated(Cell):
    """S <- S + k v^T, read q^T S: nothing waits with a token."""

    num_gates = 0

    def write_gates(self, hidden):
        return hidden.new_zeros(*hidden.shape[:2], self.num_heads, 0)

    def write_and_read(self, query, key, value, gates, write_mask, state):
        assert gates.shape == (*query.shape[:3], 0)
        key, value = (repeat_heads(x, query.shape[2]) for x in (l2_normalize(key), value))
        if write_mask is not None:
            value = value * write_mask[..., None, None]
        states = torch.einsum("bjhk,bjhv->bjhkv", key, value).cumsum(1)
        states = states if state is None else states + state[:, None]
        return torch.einsum("bihk,bihkv->bihv", query, states), states[:, -1]

    def gated_norm(self, read, hidden):
        return l2_normalize(read)


def model_of(family="Qwen2", **settings):
    return shared_model(family, CELL, dtype=torch.float64, **settings)


@over_families
@torch.no_grad()
def test_up_to_the_budget_the_model_is_its_base(family):
    ids = random_ids(BUDGET + 1, batch=2)
    expected = shared_base(family)(ids).logits
    got = one_shot(shared_model(family, CELL), ids)
    assert torch.equal(one_shot(shared_model(family, CELL), ids[:, :-1]), expected[:, :-1])
    assert (got - expected)[:, -1].abs().max() > 1e-3


@pytest.mark.slow
@over_families
@pytest.mark.parametrize("settings", [{}, {"use_router": True}, {"use_q_proj": True}], ids=str)
@torch.no_grad()
def test_chunks_are_one_shot_and_token_by_token(family, settings):
    model, ids = model_of(family, **settings), random_ids(LENGTH, batch=2)
    expected = one_shot(model, ids)
    for chunks in ([LENGTH], [1] * LENGTH, pieces(LENGTH, 7), [40, *[1] * 20, 40]):
        assert_close(read(model, ids, chunks), expected, 1e-12)


@over_families
@torch.no_grad()
def test_padded_rows_are_each_row_alone(family):
    model = model_of(family)
    rows, ids, mask = left_padded((70, 41, 3))
    alone = [one_shot(model, row)[0, -1] for row in rows]
    padded = one_shot(model, ids, attention_mask=mask, position_ids=positions_of(mask))
    assert_close(padded[:, -1], torch.stack(alone), 1e-12)
    assert_close(read(model, ids, [30, *[1] * 9, 31], mask=mask)[:, -1], torch.stack(alone), 1e-12)


@torch.no_grad()
def test_a_cell_may_have_no_gates():
    model, ids = shared_model("Qwen2", "Ungated", dtype=torch.float64), random_ids(LENGTH, batch=2)
    expected, caches = one_shot(model, ids), []
    for chunks in ([LENGTH], [1] * LENGTH, pieces(LENGTH, 7)):
        caches.append(ahn.AHNCache(model.config))
        assert_close(read(model, ids, chunks, caches[-1]), expected, 1e-6)  # float32 states
    tensors = [cache.memory_layers[0].tensors() for cache in caches]
    assert tensors[0]["write_inputs.gates"].numel() == 0
    for name, tensor in tensors[0].items():
        for other in tensors[1:]:
            assert_close(other[name], tensor, 1e-6, name)


@torch.no_grad()
def test_the_memory_acts_and_a_fresh_one_adds_zero():
    model, ids = model_of(), random_ids(LENGTH)
    with ahn.memory_off(model):
        window = one_shot(model, ids)
    assert (one_shot(model, ids) - window)[:, BUDGET:].abs().amax(-1).min() > 1e-3
    settings = ahn.AHNConfig(memory=CELL, window=WINDOW, num_sinks=4)
    fresh = ahn.attach(base_model(dtype=torch.float64), settings)
    assert torch.equal(one_shot(fresh, ids), window)


@torch.no_grad()
def test_bytes_stay_the_same():
    model = model_of()
    cache = ahn.generation.prefill(model, random_ids(LENGTH))[1]
    before = cache.nbytes
    ahn.generation.prefill(model, random_ids(3000), cache)
    assert cache.nbytes == before


def test_every_parameter_gets_a_gradient():
    model = new_model(cell=CELL)
    one_shot(model, random_ids(LENGTH)).sin().sum().backward()
    for name, parameter in model.model.layers[0].ahn.named_parameters():
        assert parameter.grad.abs().max() > 0, name


@torch.no_grad()
def test_saved_and_loaded(tmp_path):
    model, ids = shared_model("Qwen2", CELL), random_ids(LENGTH)
    model.save_pretrained(tmp_path / "merged")
    merged = AutoModelForCausalLM.from_pretrained(tmp_path / "merged").eval()
    assert torch.equal(one_shot(merged, ids), one_shot(model, ids))
    shared_base("Qwen2").save_pretrained(tmp_path / "base")
    ahn.save_pretrained(model, tmp_path / "memory")
    loaded = ahn.from_pretrained(tmp_path / "base", tmp_path / "memory").eval()
    assert torch.equal(one_shot(loaded, ids), one_shot(model, ids))
