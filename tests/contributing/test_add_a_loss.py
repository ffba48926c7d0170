"""CONTRIBUTING.md, "Add a loss": the loss of its steps trains a memory, alone and beside KL."""

from __future__ import annotations

import pytest
import torch

import ahn
from ahn.cli.train import parse
from ahn.training import register_loss
from tiny_models import assert_close, memory_parameters, new_model, one_shot, random_ids


@register_loss("total_variation", on="logits")
def total_variation(student, teacher):
    """Half the L1 distance of the two distributions of the next token: `[N, V]` to `[N]`."""
    return (student.softmax(-1) - teacher.softmax(-1)).abs().sum(-1) / 2


WINDOW, SINKS = 16, 4
WORDS = (
    "--model_name_or_path base --loss_type kl+total_variation --loss_weights 1 0.5 --output_dir out"
)


def distiller(model, **weights):
    return ahn.training.Distiller(model, losses=ahn.training.weighted_losses(weights))


def test_it_is_the_mean_over_the_tokens_beyond_the_budget():
    model, ids = new_model(dtype=torch.float64), random_ids(60, batch=2)
    output = distiller(model, total_variation=1.0)(ids, window=WINDOW, num_sinks=SINKS)
    with torch.no_grad(), ahn.disabled(model):
        teacher = one_shot(model, ids)[:, WINDOW + SINKS :]
    student = one_shot(model, ids)[:, WINDOW + SINKS :]
    expected = total_variation(student, teacher).mean()
    assert_close(output.loss.detach(), expected.detach(), 1e-12)
    parameters = list(memory_parameters(model).values())
    gradients = torch.autograd.grad(expected, parameters)
    for got, wanted in zip(torch.autograd.grad(output.loss, parameters), gradients):
        assert_close(got, wanted, 1e-10)


@pytest.mark.parametrize("weights", [{"total_variation": 1.0}, {"kl": 1.0, "total_variation": 0.5}])
def test_a_memory_trains_with_it(weights):
    model, ids = new_model(), random_ids(60, batch=4)
    optimizer = torch.optim.Adam(memory_parameters(model).values(), 1e-2)
    train, totals = distiller(model, **weights), []
    for _ in range(8):
        output = train(ids, window=WINDOW, num_sinks=SINKS)
        optimizer.zero_grad()
        output.loss.backward()
        optimizer.step()
        totals.append(output.sums["total_variation"].item())
    assert totals[-1] < 0.9 * totals[0]


def test_ahn_train_knows_it_by_its_name():
    _, _, distill, _ = parse(WORDS.split())
    weights = {name: loss.weight for name, loss in distill.losses.items()}
    assert weights == {"kl": 1.0, "total_variation": 0.5}
    assert distill.losses["total_variation"].function is total_variation
