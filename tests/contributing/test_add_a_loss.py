"""CONTRIBUTING.md, "Add a loss": its loss, from a package of its own, trains a memory."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

import ahn
from ahn.cli.train import parse
from ahn.training.losses import loss_by_name, registry
from packages import install
from tiny_models import assert_close, memory_parameters, new_model, one_shot, random_ids

SOURCE = '''\
from ahn.training.losses.registry import register_loss


@register_loss("total_variation", on="logits")
def total_variation(student, teacher):
    """Half the L1 distance of the two distributions of the next token: `[N, V]` to `[N]`."""
    return (student.softmax(-1) - teacher.softmax(-1)).abs().sum(-1) / 2
'''
WINDOW, SINKS = 16, 4
RECIPE = Path(__file__).parents[2] / "recipes" / "debug.yaml"


@pytest.fixture(scope="module", autouse=True)
def total_variation(tmp_path_factory):
    """The function, found by its entry point as in step 2."""
    folder = tmp_path_factory.mktemp("package")
    install(folder, "divergences", SOURCE, "ahn.losses", "total_variation")
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(folder)
        patch.setattr(registry, "_LOSSES", dict(registry._LOSSES))  # other tests do not know it
        found = loss_by_name("total_variation").function
        assert found.__module__ == "divergences"
        yield found


def train_step(distiller, optimizer, ids):
    """One step on `[B, T]` tokens; returns the loss summed over its tokens."""
    output = distiller(ids, window=16, num_sinks=4)
    optimizer.zero_grad()
    output.loss.backward()
    optimizer.step()
    return output.sums["total_variation"]


def distiller(model, **weights):
    return ahn.training.Distiller(model, losses=ahn.training.weighted_losses(weights))


def test_it_is_the_mean_over_the_tokens_beyond_the_budget(total_variation):
    model, ids = new_model(dtype=torch.float64), random_ids(60, batch=2)
    output = distiller(model, total_variation=1.0)(ids, window=WINDOW, num_sinks=SINKS)
    with torch.no_grad(), ahn.disabled(model):
        teacher = one_shot(model, ids)[:, WINDOW + SINKS :]
    student = one_shot(model, ids)[:, WINDOW + SINKS :]
    values = total_variation(student.flatten(0, 1), teacher.flatten(0, 1))
    expected = values.mean()
    assert_close(output.loss.detach(), expected.detach(), 1e-12)
    assert_close(output.sums["total_variation"], values.sum().detach(), 1e-12)
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
        totals.append(train_step(train, optimizer, ids).item())
    assert totals[-1] < 0.9 * totals[0]


def test_ahn_train_knows_it_by_its_name(total_variation):
    words = f"{RECIPE} --loss_type kl+total_variation --loss_weights 1 0.5"
    _, _, distill, _ = parse(words.split())
    weights = {name: loss.weight for name, loss in distill.losses.items()}
    assert weights == {"kl": 1.0, "total_variation": 0.5}
    assert distill.losses["total_variation"].function is total_variation
