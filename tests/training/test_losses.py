"""Laws of the losses: chunks = all at once, gradients = autograd's, no logits of all tokens."""

from __future__ import annotations

import json

import pytest
import torch
import torch.nn.functional as F
from runs import prepared, same_weights, train

import ahn
from ahn.training import Distiller, register_loss, weighted_losses
from ahn.training.losses import (
    IGNORE,
    Loss,
    head_losses,
    layer_distance,
    loss_by_name,
    normalized_layer_distance,
    registered_losses,
    registry,
)
from ahn.training.losses import head as head_module
from ahn.training.losses.head import logit_losses
from largest_tensor import LargestTensor
from tiny_models import base_model, random_ids

TOKENS, HIDDEN, VOCABULARY = 300, 32, 211


def inputs():
    generator = torch.Generator().manual_seed(3)
    head = torch.nn.Linear(HIDDEN, VOCABULARY, bias=False, dtype=torch.float64)
    head.requires_grad_(False)
    student, teacher = (
        torch.randn(TOKENS, HIDDEN, dtype=torch.float64, generator=generator) for _ in range(2)
    )
    targets = torch.randint(VOCABULARY, (TOKENS,), generator=generator)
    targets[torch.rand(TOKENS, generator=generator) < 0.3] = IGNORE
    labelled = torch.rand(TOKENS, generator=generator) < 0.6
    return head, student.requires_grad_(), teacher, targets, labelled


def all_at_once(head, student, teacher, targets, labelled):
    """The same sums from torch's own functions and the logits of all tokens."""
    log_p, log_q = head(student).log_softmax(-1), head(teacher).log_softmax(-1)
    kl = F.kl_div(log_p[labelled], log_q[labelled], log_target=True, reduction="sum")
    ce, teacher_ce = (
        F.nll_loss(x, targets, ignore_index=IGNORE, reduction="sum") for x in (log_p, log_q)
    )
    return kl, ce, teacher_ce


def weighted(kl, ce):
    return weighted_losses({"kl": kl, "ce": ce})


@pytest.mark.parametrize("weights", [(1.0, 0.0), (0.0, 1.0), (0.7, 0.2)], ids=str)
@pytest.mark.parametrize("chunk", [1, 64, 1000])
def test_chunks_equal_all_at_once(weights, chunk):
    head, student, *rest = inputs()
    kl, ce, teacher_ce = all_at_once(head, student, *rest)
    expected = weights[0] * kl + weights[1] * ce
    (gradient,) = torch.autograd.grad(3 * expected, student)
    got = head_losses(head, student, *rest, losses=weighted(*weights), chunk=chunk)
    assert list(got.sums) == ["kl", "ce", "teacher_ce"]
    torch.testing.assert_close(
        torch.stack([got.loss, *got.sums.values()]), torch.stack([expected, kl, ce, teacher_ce])
    )
    torch.testing.assert_close(torch.autograd.grad(3 * got.loss, student)[0], gradient)


def test_without_labels_every_token_has_a_kl():
    head, student, teacher, *_ = inputs()
    got = head_losses(head, student, teacher)
    everything = torch.ones(TOKENS, dtype=torch.bool)
    kl, *_ = all_at_once(head, student, teacher, torch.zeros(TOKENS, dtype=torch.long), everything)
    torch.testing.assert_close(got.loss, kl)
    assert got.sums["ce"] == got.sums["teacher_ce"] == 0
    assert head_losses(head, teacher, teacher).sums["kl"].abs() < 1e-12


def test_no_tokens():
    head, student, teacher, *_ = inputs()
    got = head_losses(head, student[:0], teacher[:0])
    got.loss.backward()
    assert got.loss == 0
    assert student.grad.abs().max() == 0


def test_the_largest_tensor_is_a_chunk_of_logits():
    head, student, *rest = inputs()
    with LargestTensor() as seen:
        head_losses(head, student, *rest, losses=weighted(1.0, 1.0), chunk=16).loss.backward()
    assert seen.numel == 300 * 32  # the gradient of the hidden states, not 300 x 211
    with LargestTensor() as seen:
        kl, ce, _ = all_at_once(head, student, *rest)
        (kl + ce).backward()
    assert seen.numel == TOKENS * VOCABULARY


def test_what_cannot_be_computed_is_refused():
    head, student, teacher, *_ = inputs()
    with pytest.raises(ValueError, match="head: expected a frozen"):
        head_losses(head.requires_grad_(), student, teacher)
    with pytest.raises(ValueError, match="ce: expected labels, got none"):
        head_losses(head.requires_grad_(False), student, teacher, losses=weighted(0.0, 1.0))
    mean = Loss("logits", lambda student, teacher: (student - teacher).square().mean())
    with pytest.raises(ValueError, match=r"one value for each of 300 tokens, got shape \(\)"):
        head_losses(head, student, teacher, losses={"mean": mean})


def test_layer_distance():
    student, teacher = torch.randn(2, 5, 8, dtype=torch.float64)
    torch.testing.assert_close(
        layer_distance(student, teacher), (student - teacher).square().mean(-1)
    )
    scales = torch.tensor([0.01, 1, 10, 100, 1000], dtype=torch.float64)[:, None]
    torch.testing.assert_close(
        normalized_layer_distance(scales * student, scales * teacher),
        normalized_layer_distance(student, teacher),
    )
    assert normalized_layer_distance(student, torch.zeros_like(student)).isfinite().all()


@pytest.mark.parametrize("kernels", ["torch", "auto"])
def test_the_losses_use_the_kernels_of_the_memory(monkeypatch, kernels):
    used = []

    def recorded(*given, **options):
        used.append(options["kernels"])
        return logit_losses(*given, **options)

    monkeypatch.setattr(head_module, "logit_losses", recorded)
    model = ahn.attach(base_model(), ahn.AHNConfig(window=16, num_sinks=0), kernels=kernels)
    distiller, ids = Distiller(model), random_ids(40)
    for mode in ("memory", "window"):
        distiller(ids, window=16, num_sinks=0, mode=mode)
    assert used == [kernels] * 2


@pytest.fixture
def no_others(monkeypatch):
    """Losses that a test registers are forgotten after it."""
    monkeypatch.setattr(registry, "_LOSSES", dict(registry._LOSSES))


def reverse_kl(student, teacher):
    """KL(student || teacher) of logits."""
    log_p, log_q = student.log_softmax(-1), teacher.log_softmax(-1)
    return (log_p.exp() * (log_p - log_q)).sum(-1)


def brier(student, teacher, targets):
    """Squared difference of probabilities and the next token."""
    return (student.softmax(-1) - F.one_hot(targets, student.shape[-1])).square().sum(-1)


def angle(student, teacher):
    """1 - cosine of hidden states."""
    return 1 - F.cosine_similarity(student.float(), teacher.float(), dim=-1)


NEW = {
    "reverse_kl": (reverse_kl, "logits"),
    "brier": (brier, "targets"),
    "angle": (angle, "layers"),
}


def writes_over_the_logits(student, *others, **options):
    """As the kernel on a GPU: the gradient takes the place of the student's logits."""
    sums, gradient = logit_losses(student, *others, **options)
    return sums, None if gradient is None else student.copy_(gradient)


@pytest.mark.parametrize("builtin", [logit_losses, writes_over_the_logits])
@pytest.mark.parametrize("chunk", [16, 1000])
@pytest.mark.parametrize("labels", [True, False])
def test_registered_functions_and_their_gradients(no_others, monkeypatch, builtin, chunk, labels):
    """Together with the built-in losses; one of weight 0 is reported and has no gradient."""
    monkeypatch.setattr(head_module, "logit_losses", builtin)
    for name in ("reverse_kl", "brier"):
        register_loss(name, on=NEW[name][1])(NEW[name][0])
    head, student, teacher, targets, labelled = inputs()
    weights = {"kl": 0.7, "reverse_kl": 0.3}
    tokens = (targets, labelled) if labels else ()
    if labels:
        weights.update(ce=0.2, brier=0.5)
    else:
        targets, labelled = torch.zeros_like(targets), torch.ones_like(labelled)
    kl, ce, _ = all_at_once(head, student, teacher, targets, labelled)
    has_target = targets != IGNORE
    logits, others = head(student), head(teacher)
    expected = {
        "kl": kl,
        "ce": ce,
        "reverse_kl": reverse_kl(logits[labelled], others[labelled]).sum(),
        "brier": brier(logits[has_target], others[has_target], targets[has_target]).sum(),
    }
    for without in ({}, {"reverse_kl": 0.0}):
        used = {**weights, **without}
        total = sum(w * expected[name] for name, w in used.items())
        (gradient,) = torch.autograd.grad(total, student, retain_graph=True)
        losses = weighted_losses(used)
        got = head_losses(head, student, teacher, *tokens, losses=losses, chunk=chunk)
        torch.testing.assert_close(got.loss, total)
        for name in used:
            torch.testing.assert_close(got.sums[name], expected[name])
        torch.testing.assert_close(torch.autograd.grad(got.loss, student)[0], gradient)


@pytest.mark.slow
def test_a_new_loss_is_one_function_and_one_registration(no_others, tmp_path):
    """`ahn train --loss_type NAME` trains with it and logs it."""
    for name, (function, on) in NEW.items():
        register_loss(name, on=on)(function)
    folder, first = prepared(tmp_path), {}
    for kind in ("kl", *(f"kl+{name}" for name in NEW)):
        train(folder, kind, loss_type=kind, max_steps=2)
        first[kind] = json.loads((folder / kind / "training.json").read_text())["log"][0]
    for name in NEW:
        log, alone = first[f"kl+{name}"], first["kl"]
        assert log["kl"] == alone["kl"]
        assert log["loss"] == pytest.approx(log["kl"] + log[name], rel=1e-4)
        assert log[name] > 0 and name not in alone
        assert log["grad_norm"] != alone["grad_norm"]
        assert not same_weights(folder / f"kl+{name}", folder / "kl")


def test_names(no_others, monkeypatch):
    assert registered_losses()[:3] == ["kl", "ce", "distill"]
    for name in ("kl", "distill", "teacher_ce", "memory_ce", "loss"):
        with pytest.raises(ValueError, match=f"expected an unused name, got '{name}'"):
            register_loss(name, on="logits")
    with pytest.raises(ValueError, match="expected on=logits or targets or layers, got 'head'"):
        register_loss("other", on="head")
    with pytest.raises(ValueError, match=r"loss: expected one of kl, ce, distill.*, got 'other'"):
        loss_by_name("other")


def test_losses_of_other_packages(no_others, monkeypatch, tmp_path):
    """Found by entry point; loading its module registers it."""
    (tmp_path / "elsewhere.py").write_text(
        "from ahn.training import register_loss\n"
        "@register_loss('elsewhere', on='logits')\n"
        "def elsewhere(student, teacher):\n"
        "    return (student - teacher).square().sum(-1)\n"
    )
    metadata = tmp_path / "elsewhere-1.dist-info"
    metadata.mkdir()
    (metadata / "METADATA").write_text("Metadata-Version: 2.1\nName: elsewhere\nVersion: 1\n")
    (metadata / "entry_points.txt").write_text("[ahn.losses]\nelsewhere = elsewhere:elsewhere\n")
    monkeypatch.syspath_prepend(str(tmp_path))
    assert "elsewhere" in registered_losses()
    assert loss_by_name("elsewhere").on == "logits"
