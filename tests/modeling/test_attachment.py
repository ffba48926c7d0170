"""Attach, detach, switch off: the base comes back bit for bit, other models are never touched."""

from __future__ import annotations

import io
import warnings

import pytest
import torch

import ahn
from ahn.hf.attached_state import attached_state
from ahn.modeling import attached_classes
from tiny_models import (
    assert_close,
    base_model,
    duplicate,
    new_model,
    one_shot,
    over_matrix,
    over_pairs,
    random_ids,
    shared_base,
    shared_model,
    wake,
)

SETTINGS = ahn.AHNConfig(window=16, num_sinks=4)


def hooks_of(model):
    return [hook for m in model.modules() for hook in m._forward_pre_hooks.values()]


def attributes_of(model):
    return [sorted(vars(module)) for module in model.modules()]


def traces_of(model):
    """All that attaching could leave behind, weights apart."""
    return {
        "class": type(model),
        "config": id(model.config),
        "values": model.config.to_json_string(use_diff=False),
        "backend": model.config._attn_implementation,
        "attributes": attributes_of(model),
        "hooks": hooks_of(model),
    }


@over_matrix
@torch.no_grad()
def test_detach_restores_everything(family, cell):
    model = base_model(family)
    before = traces_of(model)
    weights = {name: x.clone() for name, x in model.state_dict().items()}
    expected = one_shot(model, random_ids(60))
    settings = ahn.AHNConfig(cell, 16, 4, use_q_proj=True, use_router=True)
    attached = wake(ahn.attach(model, settings))
    assert attached is model
    assert not torch.equal(one_shot(model, random_ids(60)), expected)
    assert ahn.detach(model) is model
    assert traces_of(model) == before
    assert all(
        module.config is model.config for module in model.modules() if "config" in vars(module)
    )
    assert list(model.state_dict()) == list(weights)
    for name, x in model.state_dict().items():
        assert torch.equal(x, weights[name]), name
    assert torch.equal(one_shot(model, random_ids(60)), expected)


def test_the_attached_model_is_one_of_its_family():
    for family in ("Qwen2", "Qwen3", "Llama", "Mistral"):
        base, model = shared_base(family), shared_model(family)
        assert isinstance(model, type(base))
        assert type(model).__name__ == f"AHN{family}ForCausalLM"
        assert model.config.model_type == f"ahn_{base.config.model_type}"
        assert type(model) is attached_classes(type(base))[1]


def test_attaching_twice_or_detaching_nothing_is_refused():
    model = new_model()
    with pytest.raises(ValueError, match="attach: expected a model without a memory"):
        ahn.attach(model, SETTINGS)
    ahn.detach(model)
    for change in (ahn.detach, attached_state, lambda m: ahn.disabled(m).__enter__()):
        with pytest.raises(ValueError, match="expected a model with a memory attached"):
            change(model)
    assert isinstance(wake(ahn.attach(model, SETTINGS)), type(new_model()))


@torch.no_grad()
def test_a_refused_attach_changes_nothing():
    model, expected = base_model(), attributes_of(base_model())
    with pytest.raises(ValueError, match="memory: expected one of"):
        ahn.attach(model, ahn.AHNConfig(memory="LSTM"))
    with pytest.raises(ValueError, match="kernels: expected"):
        ahn.attach(model, SETTINGS, kernels="none")
    assert attributes_of(model) == expected
    assert type(model) is type(base_model())
    assert not hooks_of(model)
    assert "ahn" not in "".join(model.state_dict())
    assert torch.equal(one_shot(model, random_ids(60)), one_shot(shared_base(), random_ids(60)))
    ahn.attach(model, SETTINGS)


@torch.no_grad()
def test_a_model_that_shares_the_config_is_untouched():
    first = base_model()
    second = type(first)(first.config).eval()
    second.load_state_dict(first.state_dict())
    values, ids = first.config.to_json_string(use_diff=False), random_ids(60)
    expected = one_shot(second, ids)
    config = second.config
    wake(ahn.attach(first, SETTINGS))
    assert second.config is config
    assert config.to_json_string(use_diff=False) == values
    assert torch.equal(one_shot(second, ids), expected)
    assert torch.equal(second.generate(ids, max_new_tokens=3)[:, :60], ids)
    assert not torch.equal(one_shot(first, ids), expected)


@over_pairs
@torch.no_grad()
def test_copies_and_pickles_work_on_their_own(family, cell):
    model, ids = new_model(family, cell), random_ids(60)
    expected = model.generate(ids, max_new_tokens=8, do_sample=False)
    buffer = io.BytesIO()
    torch.save(model, buffer)
    buffer.seek(0)
    copies = [duplicate(model), torch.load(buffer, weights_only=False)]
    wake(model, seed=7)
    for copy in copies:
        assert torch.equal(copy.generate(ids, max_new_tokens=8, do_sample=False), expected)
        with ahn.disabled(copy):
            assert torch.equal(one_shot(copy, ids), one_shot(shared_base(family), ids))
        assert not torch.equal(one_shot(model, ids), one_shot(copy, ids))
        assert type(ahn.detach(copy)) is type(shared_base(family))
        assert torch.equal(one_shot(copy, ids), one_shot(shared_base(family), ids))
    assert hooks_of(model)


@over_matrix
@torch.no_grad()
def test_disabled_is_the_base(family, cell):
    base, model, ids = shared_base(family), shared_model(family, cell), random_ids(60, batch=2)
    options = {"max_new_tokens": 12, "do_sample": False}
    with ahn.disabled(model):
        assert torch.equal(model(ids).logits, base(ids).logits)
        assert torch.equal(one_shot(model, ids), one_shot(base, ids))
        assert torch.equal(model.generate(ids, **options), base.generate(ids, **options))
        mask = torch.ones_like(ids)
        mask[1, :20] = 0
        padded = {"attention_mask": mask, **options}
        assert torch.equal(model.generate(ids, **padded), base.generate(ids, **padded))
    assert not torch.equal(one_shot(model, ids), one_shot(base, ids))


@torch.no_grad()
def test_contexts_nest_and_end_with_an_exception():
    model, ids = shared_model(), random_ids(60)
    on = one_shot(model, ids)
    with ahn.memory_off(model) as same:
        assert same is model
        off = one_shot(model, ids)
        with ahn.disabled(model):
            assert torch.equal(one_shot(model, ids), one_shot(shared_base(), ids))
            with pytest.raises(KeyError), ahn.memory_off(model):
                raise KeyError
            assert torch.equal(one_shot(model, ids), one_shot(shared_base(), ids))
        assert torch.equal(one_shot(model, ids), off)
    assert torch.equal(one_shot(model, ids), on)
    assert not torch.equal(on, off)


@torch.no_grad()
def test_the_chosen_backend_is_remembered():
    model, ids = base_model(), random_ids(12)
    model.set_attn_implementation("eager")
    ahn.attach(model, SETTINGS)
    assert model.config._attn_implementation == "ahn"
    assert len(model(ids, output_attentions=True).attentions) == 2
    for name in ("sdpa", "ahn"):  # the second chooses nothing
        model.set_attn_implementation(name)
        assert model.config._attn_implementation == "ahn"
        with pytest.warns(
            UserWarning, match="output_attentions: 'sdpa' gives no attention weights"
        ):
            model(ids, output_attentions=True)
    ahn.detach(model)
    assert model.config._attn_implementation == "eager"


def test_a_backend_forced_from_outside_is_noticed():
    """Else the base would attend to the chunk alone: wrong text without an error."""
    model = new_model()
    model.config._attn_implementation = "sdpa"
    with pytest.raises(RuntimeError, match="attn_implementation: expected 'ahn'"):
        model(random_ids(30))


def test_continuous_batching_says_it_is_absent():
    assert not hasattr(shared_model(), "init_continuous_batching")


def test_a_prompt_beyond_the_trained_positions_warns_once():
    model = new_model(overrides=(("max_position_embeddings", 64),))
    with pytest.warns(UserWarning, match="65 tokens are more than .*max_position_embeddings=64"):
        model(random_ids(65))
    with torch.no_grad():
        expected = one_shot(shared_model(), random_ids(80))
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert_close(one_shot(model, random_ids(80)), expected, 1e-6)


def test_experts_run_as_they_did_before():
    base = base_model("Mixtral", sliding_window=None, num_local_experts=4, num_experts_per_tok=2)
    base.set_experts_implementation("batched_mm")
    attached = ahn.attach(base, ahn.AHNConfig(window=4, num_sinks=0))
    assert attached.config._experts_implementation == "batched_mm"
