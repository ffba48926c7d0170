"""Liger's kernels for the base's own norms, RoPE and MLP: put in and taken out without a trace.

The kernels run on a GPU alone; here plain PyTorch stands in for them.
"""

from __future__ import annotations

import sys
from types import ModuleType, SimpleNamespace

import pytest
import torch
import torch.nn.functional as F
from transformers.models.llama.modeling_llama import apply_rotary_pos_emb

import ahn
from added_families import ADDED, added_base
from ahn.hf import families, liger
from ahn.hf.families import family_of
from ahn.hf.liger import drop_liger, use_liger
from tiny_models import FAMILIES, assert_close, base_model, one_shot, random_ids, wake

CALLS = []  # which kernels ran


def _rms_norm(x, weight, eps, offset, casting_mode, in_place):
    assert (offset, casting_mode, in_place) == (0.0, "llama", False)
    CALLS.append("norm")
    return F.rms_norm(x, weight.shape, weight, eps)


def _silu_mul(gate, up):
    CALLS.append("mlp")
    return F.silu(gate) * up


def _rope(q, k, cos, sin):
    CALLS.append("rope")
    return apply_rotary_pos_emb(q, k, cos, sin)


@pytest.fixture
def stand_in(monkeypatch):
    ops, rope = ModuleType("liger_kernel.ops"), ModuleType("liger_kernel.transformers.rope")
    ops.LigerRMSNormFunction = SimpleNamespace(apply=_rms_norm)
    ops.LigerSiLUMulFunction = SimpleNamespace(apply=_silu_mul)
    rope.liger_rotary_pos_emb = _rope
    for module in (ops, rope):
        monkeypatch.setitem(sys.modules, module.__name__, module)
    monkeypatch.setattr(liger, "_machine_reason", lambda decoder: None)
    CALLS.clear()


def attributes_of(model):
    return [sorted(vars(module)) for module in model.modules()]


def base_of(family, monkeypatch):
    return added_base(family, monkeypatch) if family in ADDED else base_model(family)


@pytest.mark.parametrize("family", [*FAMILIES, *ADDED])
@torch.no_grad()
def test_the_kernels_come_and_go(stand_in, family, monkeypatch):
    """For families of the table, and for one that an entry adds."""
    model, other = base_of(family, monkeypatch), base_of(family, monkeypatch)
    ids, before = random_ids(40), attributes_of(model)
    expected = one_shot(model, ids)
    wake(ahn.attach(model, ahn.AHNConfig(window=16, num_sinks=4)))
    attached = one_shot(model, ids)
    assert use_liger(model) is model
    assert_close(one_shot(model, ids), attached, 1e-5)
    entry = family_of(model.model.layers[0])
    layers, norms = len(model.model.layers), 2 if entry.qk_norms is None else 4
    assert [CALLS.count(x) for x in ("norm", "mlp", "rope")] == [layers * norms + 1, layers, layers]
    with ahn.disabled(model):
        assert_close(one_shot(model, ids), expected, 1e-5)
    CALLS.clear()
    assert torch.equal(one_shot(other, ids), expected)
    drop_liger(model)
    assert torch.equal(one_shot(model, ids), attached)
    use_liger(model)
    ahn.detach(model)
    assert attributes_of(model) == before
    assert torch.equal(one_shot(model, ids), expected)
    assert not CALLS


def test_what_cannot_have_them_is_refused(stand_in, monkeypatch):
    model = use_liger(base_model())
    with pytest.raises(ValueError, match="expected a model without Liger's kernels"):
        use_liger(model)
    hooked = base_model()
    hooked.model.norm.forward = hooked.model.norm.forward
    with pytest.raises(ValueError, match="no forward put in place by others, got one of Qwen2RMS"):
        use_liger(hooked)
    stranger = ADDED["Toy"][1]()
    with pytest.raises(ValueError, match=f"a model of {', '.join(families.FAMILIES)}, got"):
        use_liger(stranger)
    monkeypatch.undo()
    with pytest.raises(ValueError, match="use_liger: expected"):
        use_liger(base_model())


def changed(how):
    """A linear map, of which calling it may do more than a product with its weight."""
    linear = torch.nn.Linear(4, 4, bias=how == "bias")
    if how == "forward":
        linear.forward = linear.forward
    elif how.endswith("hook"):
        getattr(linear, f"register_{how}")(lambda *_: None)
    return torch.nn.Identity() if how == "kind" else linear


HOOKS = ["forward_hook", "forward_pre_hook", "full_backward_hook", "full_backward_pre_hook"]


@pytest.mark.parametrize("how", ["bias", "forward", "kind", *HOOKS])
def test_a_map_that_does_more_than_a_product_is_called(how):
    """As an adapter's, a sharded one's, or one that is offloaded."""
    assert liger._is_plain(changed("nothing"))
    assert not liger._is_plain(changed(how))
