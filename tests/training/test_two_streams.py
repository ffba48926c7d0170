"""Law: one pass over the layers equals a pass of the student and one of the teacher."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F

from ahn.training import Distiller, distillation_loss, two_streams, weighted_losses
from ahn.training.batch import Batch, TokenCounts, loss_tokens
from ahn.training.distillation import distillation
from ahn.training.losses import IGNORE, Loss, layer_distance, normalized_layer_distance
from largest_tensor import LargestTensor
from tiny_models import (
    assert_close,
    memory_parameters,
    new_model,
    over_matrix,
    over_trios,
    random_ids,
)

LENGTH, WINDOW, SINKS = 70, 12, 5
SIZES = {"window": WINDOW, "num_sinks": SINKS}
ALL = weighted_losses({"kl": 0.7, "ce": 0.2, "distill": 0.4})


@pytest.fixture(autouse=True, params=[False, True], ids=["apart", "shared"])
def _shared(request, monkeypatch):
    """Whether the student goes by the teacher's first tokens."""
    monkeypatch.setattr(two_streams, "_may_share", lambda hidden: request.param)
    return request.param


def frozen(family="Qwen2", cell="GatedDeltaNet", **options):
    return Distiller(new_model(family, cell, dtype=torch.float64, **options)).model


def labelled(batch=2, length=LENGTH):
    ids = random_ids(length, batch)
    labels = ids.masked_fill(
        torch.rand(ids.shape, generator=torch.Generator().manual_seed(1)) < 0.3, IGNORE
    )
    return Batch(ids, labels)


def two_passes(model, batch, distance=layer_distance):
    """The same losses from two forwards of the whole model, and everything at once."""
    inputs = {
        "input_ids": batch.input_ids,
        "position_ids": batch.position_ids,
        "output_hidden_states": True,
        "use_cache": False,
    }
    with torch.no_grad():
        teacher = model(**inputs, ahn_mode="full")
    student = model(**inputs, ahn_window=WINDOW, ahn_sinks=SINKS)
    positions = batch.positions()
    beyond = positions >= WINDOW + SINKS
    counts = beyond & (batch.labels != IGNORE)
    own, target = (x.logits.log_softmax(-1) for x in (student, teacher))
    kl = F.kl_div(own[counts], target[counts], log_target=True, reduction="sum") / counts.sum()
    follows = beyond[:, :-1] & (positions[:, 1:] > 0)
    labels = batch.labels[:, 1:].masked_fill(~follows, IGNORE)
    ce = F.nll_loss(own[:, :-1].transpose(1, 2), labels, ignore_index=IGNORE)
    distances = [
        distance(a[counts], b[counts]).sum() / counts.sum()
        for a, b in zip(student.hidden_states[1:-1], teacher.hidden_states[1:-1])
    ]
    return kl, ce, distances


def gradients(loss, model):
    parameters = memory_parameters(model)
    found = torch.autograd.grad(loss, list(parameters.values()))
    return dict(zip(parameters, found))


@over_matrix
def test_loss_and_gradients(family, cell):
    model, batch = frozen(family, cell), labelled()
    kl, ce, _ = two_passes(model, batch)
    losses = weighted_losses({"kl": 0.7, "ce": 0.2})
    expected = gradients(0.7 * kl + 0.2 * ce, model)
    for checkpointing in (True, False):
        got = distillation(model, batch, losses=losses, checkpointing=checkpointing, **SIZES)
        assert_close(got.loss, 0.7 * kl + 0.2 * ce, 1e-12)
        for name, gradient in gradients(got.loss, model).items():
            assert expected[name].abs().max() > 0
            assert_close(gradient, expected[name], 1e-12, name)


@pytest.mark.parametrize("distance", [layer_distance, normalized_layer_distance])
def test_distance_of_the_layers(distance):
    """Of all but the last layer `output_hidden_states` shows what the layer returned."""
    model, batch = frozen(overrides=(("num_hidden_layers", 3),)), labelled()
    *_, distances = two_passes(model, batch, distance)
    got = []
    layer_of = model.model.layers[-1]

    def keep(module, args, output):
        got.append(output.chunk(2))

    handle = layer_of.register_forward_hook(keep)
    losses = {"distill": Loss("layers", distance)}
    distillation(model, batch, losses=losses, **SIZES)
    handle.remove()
    output = distillation(model, batch, losses=losses, **SIZES)
    teacher, student = got[0]
    chosen = (batch.positions() >= WINDOW + SINKS) & (batch.labels != IGNORE)
    last = distance(student[chosen], teacher[chosen]).sum() / chosen.sum()
    expected = torch.stack([*distances, last]).mean()
    assert_close(output.loss, expected, 1e-12)
    expected = gradients(expected, model)
    for name, gradient in gradients(output.loss, model).items():
        assert_close(gradient, expected[name], 1e-12, name)


@pytest.mark.slow
@over_trios
@pytest.mark.parametrize(
    "settings", [{}, {"full_attention_layers": (0,), "use_q_proj": True}], ids=str
)
def test_packed_rows(family, cell, settings):
    """A packed row counts as its documents do, one by one."""
    model = frozen(family, cell, **settings)
    lengths = (40, 17, 23)
    row = labelled(1, sum(lengths))
    positions = torch.cat([torch.arange(n) for n in lengths])[None]
    apart = [
        Batch(i, j) for i, j in zip(row.input_ids.split(lengths, 1), row.labels.split(lengths, 1))
    ]
    budget = WINDOW + SINKS
    numbers = [loss_tokens(document, budget).counts() for document in apart]
    counts = TokenCounts(*map(sum, zip(*numbers)))
    together = distillation(model, row._replace(position_ids=positions), losses=ALL, **SIZES)
    parts = [distillation(model, x, losses=ALL, counts=counts, **SIZES) for x in apart]
    assert loss_tokens(row._replace(position_ids=positions), budget).counts() == counts
    assert_close(together.loss, sum(part.loss for part in parts), 1e-12)
    expected = gradients(sum(part.loss for part in parts), model)
    for name, gradient in gradients(together.loss, model).items():
        assert_close(gradient, expected[name], 1e-12, name)


def test_padding_on_the_right_changes_nothing():
    model, batch = frozen(), labelled()
    padded = Batch(F.pad(batch.input_ids, (0, 9)), F.pad(batch.labels, (0, 9), value=IGNORE))
    expected, got = (distillation(model, x, losses=ALL, **SIZES) for x in (batch, padded))
    assert_close(got.loss, expected.loss, 1e-12)


def test_padding_on_the_left():
    model, ids = frozen(), random_ids(LENGTH)
    padded, mask = F.pad(ids, (9, 0)), F.pad(torch.ones_like(ids), (9, 0))
    got = distillation_loss(model, padded, attention_mask=mask, **SIZES)
    assert_close(got, distillation_loss(model, ids, **SIZES), 1e-12)


@pytest.mark.parametrize("trained", [None, 0, 1])
@pytest.mark.parametrize("settings", [{}, {"full_attention_layers": (0,)}], ids=str)
def test_the_student_reads_what_is_beyond_the_budget(_shared, settings, trained):
    """Unless a layer is trained itself, or looks at all tokens."""
    model, lengths = frozen(**settings), []
    if trained is not None:
        model.model.layers[trained].mlp.up_proj.weight.requires_grad_(True)

    def keep(attention, args, kwargs):
        if torch.is_grad_enabled():
            lengths.append(kwargs["hidden_states"].shape[1])

    model.model.layers[1].self_attn.register_forward_pre_hook(keep, with_kwargs=True)
    distillation(model, labelled(), **SIZES)
    shares = _shared and not settings and trained is None
    assert lengths == [LENGTH - WINDOW - SINKS if shares else LENGTH]


CORNERS = [(12, 5, 18, 2), (12, 0, 13, 1), (1, 0, 9, 2), (1, 3, 5, 1), (7, 2, 40, 2)]


@pytest.mark.slow
@pytest.mark.parametrize("_shared", ["both"], indirect=True)
@pytest.mark.parametrize("checkpointing", [False, True])
@pytest.mark.parametrize(("window", "sinks", "length", "batch"), CORNERS)
def test_sharing_in_corners(window, sinks, length, batch, checkpointing, monkeypatch):
    """Just above the budget, no sinks, a window of one token; gradients of two batches summed."""
    model, found = frozen("Qwen3", use_q_proj=True), []
    texts = [Batch(random_ids(length, batch, seed=seed)) for seed in (1, 2)]
    options = {"window": window, "num_sinks": sinks, "checkpointing": checkpointing}
    for shares in (False, True):
        monkeypatch.setattr(two_streams, "_may_share", lambda hidden, shares=shares: shares)
        model.zero_grad()
        losses = [distillation(model, text, losses=ALL, **options).loss for text in texts]
        sum(losses).backward()
        with torch.no_grad():
            losses += [distillation(model, text, losses=ALL, **options).loss for text in texts]
        grads = {name: p.grad for name, p in memory_parameters(model).items()}
        found.append((torch.stack(losses).detach(), grads))
    (expected, gradients), (got, others) = found
    assert_close(got, expected, 1e-12)
    for name, gradient in gradients.items():
        # Of a single token that has left, no decay is seen.
        assert gradient.abs().max() > 0 or "o_proj" not in name, name
        assert_close(others[name], gradient, 1e-12, name)


def test_nothing_is_run_twice():
    """A training step runs each layer twice (teacher, student) and the student's once again."""
    model, calls = frozen(), []
    for layer in model.model.layers:
        layer.self_attn.register_forward_hook(lambda *_: calls.append(torch.is_grad_enabled()))
    distillation(model, labelled(), **SIZES).loss.backward()
    assert len(calls) == 3 * len(model.model.layers)
    assert calls.count(False) == len(model.model.layers)
    assert not any("forward" in layer.__dict__ for layer in model.model.layers)


@pytest.mark.slow
def test_what_is_kept_for_the_backward_pass():
    """One hidden state a layer, and no tensor of [tokens, vocabulary] anywhere."""
    overrides = (("vocab_size", 1024), ("num_hidden_layers", 4))
    model, batch = frozen(overrides=overrides), labelled(length=2048)
    kept = {}

    def keep(tensor):
        kept[tensor.untyped_storage().data_ptr()] = tensor.untyped_storage().nbytes()
        return tensor

    with LargestTensor() as seen, torch.autograd.graph.saved_tensors_hooks(keep, lambda x: x):
        loss = distillation(model, batch, window=256, num_sinks=0).loss
        hidden = 2 * 2048 * 64 * 8
        weights = {p.untyped_storage().data_ptr() for p in model.parameters()}
        total = sum(size for place, size in kept.items() if place not in weights)
        loss.backward()
    assert seen.numel < 2 * 2048 * 1024 / 2, seen.shape
    # A hidden state a layer; the final norm's of both streams; the gradient of the last ones.
    assert total < (4 + 10) * hidden, total / hidden


def test_models_that_change_their_logits_are_refused():
    model = frozen()
    model.config.logits_scaling = 8.0
    with pytest.raises(ValueError, match="expected logits straight from the head"):
        distillation(model, labelled(), **SIZES)


@pytest.mark.slow
@pytest.mark.parametrize("settings", [{}, {"full_attention_layers": (1,)}], ids=str)
def test_packed_rows_need_no_mask_of_all_pairs(settings):
    """Of teacher or student, in forward and backward pass."""
    model = Distiller(new_model(dtype=torch.float32, **settings)).model
    count, length = 20, 100
    ids, positions = random_ids(count * length), torch.arange(length).repeat(count)[None]
    with LargestTensor() as seen:
        distillation(model, Batch(ids, position_ids=positions), **SIZES).loss.backward()
    assert seen.numel < (count * length) ** 2 / 8, seen.shape
