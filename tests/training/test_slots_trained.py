"""Training of slots: shares, scores from later use, and KL through the choice."""

from __future__ import annotations

import json
import math

import pytest
import torch
from runs import losses, prepared, train, weights

import ahn
from ahn.facts import forms_of
from ahn.layer.modes import FULL, WINDOW
from ahn.training import Distiller, distillation_loss, memory_parameters
from ahn.training.batch import Batch
from ahn.training.distiller import only_trainable
from ahn.training.loop import distill, parameter_groups
from ahn.training.slots import RATE_FACTOR, SCORES, find_shares, keep_rates_positive, score_losses
from ahn.training.slots.scores import LEFT_OUT, largest_use
from ahn.training.slots.shares import FarAttention
from slot_models import SHARES, slot_model
from tiny_models import WINDOW as SIZE

SINKS = 4
IDS = torch.randint(3, 60, (2, 64), generator=torch.Generator().manual_seed(0))
SETTINGS = [{}, {"slot_shares": SHARES}, {"memory": "GatedDeltaNet"}]


@pytest.mark.parametrize("settings", SETTINGS, ids=str)
def test_the_loss_is_that_of_the_model_and_reaches_every_parameter(settings):
    model = slot_model(**settings)
    with only_trainable(model, memory_parameters(model).values()):
        loss = distillation_loss(model, IDS)
        loss.backward()
    with torch.no_grad():
        student, teacher = (
            model(IDS, **mode).logits.log_softmax(-1)[:, SIZE + SINKS :]
            for mode in ({}, {"ahn_mode": "full"})
        )
    expected = (teacher.exp() * (teacher - student)).sum(-1).mean()
    assert loss.item() == pytest.approx(expected.item(), rel=1e-9) and loss > 0
    for name, parameter in memory_parameters(model).items():
        assert parameter.grad is not None and parameter.grad.abs().max() > 0, name


@pytest.mark.parametrize("settings", SETTINGS, ids=str)
def test_a_shared_prefix_changes_neither_loss_nor_gradients(settings, monkeypatch):
    """As on a GPU, where the student reads only what lies beyond the budget."""
    found = []
    for shares in (False, True):
        monkeypatch.setattr("ahn.training.two_streams._may_share", lambda hidden, x=shares: x)
        model = slot_model(**settings)
        parameters = memory_parameters(model)
        with only_trainable(model, parameters.values()):
            loss = distillation_loss(model, IDS, checkpointing=shares)
            loss.backward()
        found.append((loss.item(), torch.cat([x.grad.flatten() for x in parameters.values()])))
    assert found[1][0] == pytest.approx(found[0][0], rel=1e-9)
    torch.testing.assert_close(found[1][1], found[0][1], rtol=1e-7, atol=1e-12)


def test_half_precision_of_the_base_trains_in_autocast():
    model = slot_model(dtype=torch.float32, memory="GatedDeltaNet")
    half = distill(model, [IDS] * 4, total_steps=4, autocast=torch.bfloat16, score_share=0.5)
    assert all(math.isfinite(loss) and loss > 0 for loss in half)


def test_the_choice_learns_what_is_needed():
    """KL falls where scores and rates alone are trained."""
    model = slot_model(seed=2)
    batches = [IDS] * 30
    before = distill(model, batches[:1], total_steps=1, score_share=0)
    after = distill(model, batches, total_steps=30, learning_rate=3e-2, score_share=0)
    assert min(after[-3:]) < before[0]


def test_largest_use_by_its_definition():
    generator = torch.Generator().manual_seed(0)
    query = torch.randn(2, 4, 300, 8, generator=generator, dtype=torch.float64)
    key = torch.randn(2, 2, 300, 8, generator=generator, dtype=torch.float64)
    scores = query @ key.repeat_interleave(2, 1).mT * 8**-0.5
    i = torch.arange(300)
    weight = scores.masked_fill(i > i[:, None], -math.inf).softmax(-1)
    weight = weight * (i <= i[:, None] - 16)
    expected = weight.unflatten(1, (2, 2)).amax((2, 3)).float()
    torch.testing.assert_close(largest_use(query, key, 16), expected)
    assert expected[..., -16:].abs().max() == 0


@pytest.mark.parametrize("settings", SETTINGS, ids=str)
def test_scores_are_compared_with_use_and_nothing_else_learns(settings):
    model = slot_model(**settings)
    seen = {}
    hook = model.model.layers[1].self_attn.register_forward_pre_hook(
        lambda module, args, kwargs: seen.update(kwargs), with_kwargs=True
    )
    with only_trainable(model, memory_parameters(model).values()):
        loss = score_losses(model, Batch(IDS), window=SIZE, num_sinks=SINKS)
        loss.backward()
    hook.remove()
    assert loss > 0 and seen["ahn"].slots is not None
    for name, parameter in memory_parameters(model).items():
        assert (parameter.grad.abs().max() > 0) == (".ahn_slots.net." in name), name


def test_fitting_scores_lowers_their_loss():
    model = slot_model()
    fitted = distill(model, [IDS] * 40, total_steps=40, learning_rate=3e-2, score_share=1)
    assert fitted[-1] < 0.9 * fitted[0]
    assert len(IDS[0]) < LEFT_OUT * SIZE  # these texts leave out less than a window


def test_a_text_within_the_budget_has_a_loss_of_zero():
    model = slot_model()
    with only_trainable(model, memory_parameters(model).values()):
        loss = score_losses(model, Batch(IDS[:, : SIZE + SINKS]), window=SIZE, num_sinks=SINKS)
        loss.backward()
    assert loss == 0


@torch.no_grad()
def test_all_heads_that_see_far_are_full_attention_and_none_are_the_window():
    model = slot_model()

    def hidden(mode):
        return model.get_decoder()(IDS, ahn_mode=mode, use_cache=False).last_hidden_state

    both = {0: [True, True], 1: [True, True]}
    torch.testing.assert_close(hidden(FarAttention(both)), hidden(FULL))
    torch.testing.assert_close(hidden(FarAttention({})), hidden(WINDOW))
    none = FarAttention({0: [False, False], 1: [False, False]})
    torch.testing.assert_close(hidden(none), hidden(WINDOW))
    some = hidden(FarAttention({1: [True, False]}))
    assert (some - hidden(FULL)).abs().max() > 1e-6 < (some - hidden(WINDOW)).abs().max()


def test_shares_are_found_and_sum_to_one():
    model = slot_model()
    lines: list[str] = []
    with only_trainable(model, ()):
        found = find_shares(model, [Batch(IDS)], window=SIZE, num_sinks=SINKS, report=lines.append)
    shares = torch.tensor(found.shares)
    assert shares.shape == (2, 2) and shares.sum().item() == pytest.approx(1)
    kl = [value for _, value in found.log]
    assert kl[0] > kl[-1] and kl[-1] <= 0.05 * kl[0] and len(lines) == len(kl) - 1
    assert {f"layer {i}" for i in range(2) if shares[i].sum() > 0} == {x for x, _ in found.log[1:]}
    ahn.AHNConfig(memory=None, slots=8, slot_shares=found.shares)
    with only_trainable(model, ()), pytest.raises(ValueError, match="full attention predicts"):
        find_shares(model, [Batch(IDS[:, :8])], window=SIZE, num_sinks=SINKS)


def test_rates_learn_faster_and_never_fall_below_zero():
    model = slot_model()
    parameters = memory_parameters(model)
    groups = parameter_groups(parameters, 1e-3, 0.1, 0.1)
    rates = [x for name, x in parameters.items() if name.endswith(".rate")]
    [fast] = [g for g in groups if g["lr"] == pytest.approx(1e-3 * RATE_FACTOR)]
    assert list(map(id, fast["params"])) == list(map(id, rates))
    assert sum(len(g["params"]) for g in groups) == len(parameters)
    optimizer = torch.optim.SGD(rates, lr=1.0)
    keep_rates_positive(optimizer, rates)
    for rate in rates:
        rate.grad = torch.ones_like(rate)
    optimizer.step()
    assert all(bool((rate == 0).all()) for rate in rates)


def test_the_distiller_is_asked_for_scores_by_name():
    model = slot_model()
    output = Distiller(model)(IDS, window=SIZE, num_sinks=SINKS, mode=SCORES)
    expected = score_losses(model, Batch(IDS), window=SIZE, num_sinks=SINKS)
    assert output.loss.item() == pytest.approx(expected.item()) and not output.sums


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A base, data, and a whole run that trained slots."""
    folder = prepared(tmp_path_factory.mktemp("slots"))
    train(folder, "unbroken", **OPTIONS)
    return folder


OPTIONS = {
    "slots": 8,
    "ahn_implementation": "none",
    "facts_languages": "en,code",
    "sliding_window_type": "fixed",
    "sliding_window": 18,
}


@pytest.mark.slow
def test_a_run_finds_shares_then_fits_scores_then_trains_the_choice(folder):
    out = folder / "unbroken"
    shares = json.loads((out / "slot_shares.json").read_text())["slot_shares"]
    model = ahn.from_pretrained(folder / "base", out)
    config = model.config.ahn_config
    assert config["memory"] is None and config["slots"] == 8
    assert [list(row) for row in config["slot_shares"]] == shares
    assert len(losses(out)) == 8
    log = [x for x in json.loads((out / "training.json").read_text())["log"] if "loss" in x]
    assert ["kl" in entry for entry in log] == [False] * 3 + [True] * 5
    trained = weights(out)
    assert all(".ahn_slots." in name for name in trained)
    assert any(x.abs().max() > 0 for name, x in trained.items() if ".net.2." in name)


@pytest.mark.slow
def test_a_resumed_run_equals_an_unbroken_one(folder):
    train(folder, "again", **OPTIONS, max_steps=8)
    resumed = folder / "again"
    for path in resumed.glob("checkpoint-8"):
        for file in path.iterdir():
            file.unlink()
        path.rmdir()
    train(folder, "again", **OPTIONS, resume_from_checkpoint=str(resumed / "checkpoint-6"))
    a, b = weights(resumed), weights(folder / "unbroken")
    assert a.keys() == b.keys() and all(torch.equal(a[name], b[name]) for name in a)


@pytest.mark.slow
def test_shares_of_a_file_and_alike(folder, tmp_path):
    given = tmp_path / "shares.json"
    given.write_text(json.dumps({"slot_shares": SHARES}))
    train(folder, "given", **OPTIONS, slot_shares=str(given), max_steps=1)
    config = ahn.from_pretrained(folder / "base", folder / "given").config.ahn_config
    assert [list(row) for row in config["slot_shares"]] == [list(row) for row in SHARES]
    given.write_text("{}")
    with pytest.raises(ValueError, match=r"shares.json: expected slot_shares, got nothing"):
        train(folder, "wrong", **OPTIONS, slot_shares=str(given), max_steps=1)
    with pytest.raises(ValueError, match="score_share: expected 0 to 1, got 2"):
        train(folder, "wrong", **OPTIONS, score_share=2.0)
    with pytest.raises(ValueError, match="language: expected one of"):
        train(folder, "wrong", **{**OPTIONS, "facts_languages": "xx"})
    assert forms_of(["en"])
