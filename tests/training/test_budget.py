"""Window and sinks of a step: the paper's distribution, the same on every rank."""

from __future__ import annotations

from collections import Counter

import pytest

from ahn.training.budget import BUDGETS, SINKS, Budget, BudgetSampler

DRAWS = 4000


def test_budgets_and_sinks_of_the_paper():
    assert BUDGETS == (32, 64, 128, 256, 512, 1024, 2048, 4096, 8192)
    drawn = [BudgetSampler().draw(step, 10_000) for step in range(DRAWS)]
    budgets = Counter(budget.tokens for budget in drawn)
    assert set(budgets) == {2048, 4096, 8192}  # 1250 < budget < 10,000
    for seen in budgets.values():
        assert abs(seen / DRAWS - 1 / 3) < 0.03
    for budget in budgets:
        sinks = Counter(x.num_sinks for x in drawn if x.tokens == budget)
        assert set(sinks) == {x for x in SINKS if x <= budget / 2}
        for seen in sinks.values():
            assert abs(seen / budgets[budget] - 1 / len(sinks)) < 0.04


@pytest.mark.parametrize("length", [33, 64, 65, 288, 24_576, 65_535, 65_536, 131_072])
def test_bounds(length):
    for step in range(200):
        budget = BudgetSampler(seed=1).draw(step, length)
        assert 1 <= budget.window < length > budget.tokens
        assert budget.num_sinks <= budget.tokens / 2
        assert budget.tokens > length / 8 or budget.tokens == 8192


def test_other_kinds():
    fixed = BudgetSampler("fixed", "prefix", window=64)
    assert fixed.draw(3, 100) == Budget(64, 0)
    assert BudgetSampler("linear", "prefix").draw(3, 8192) == Budget(2048, 0)
    assert BudgetSampler("linear", "prefix").draw(3, 1000) == Budget(512, 0)
    drawn = {BudgetSampler("fixed", window=64).draw(step, 100) for step in range(50)}
    assert drawn == {Budget(64, 0), Budget(32, 32)}


def test_a_draw_depends_on_seed_step_and_length_alone():
    draws = [BudgetSampler(seed=5).draw(step, 9000) for step in range(50)]
    assert [BudgetSampler(seed=5).draw(step, 9000) for step in reversed(range(50))] == draws[::-1]
    assert [BudgetSampler(seed=6).draw(step, 9000) for step in range(50)] != draws
    # Ranks whose lengths differ a little agree wherever the choice fits both.
    others = [BudgetSampler(seed=5).draw(step, 8190) for step in range(50)]
    assert sum(a == b for a, b in zip(draws, others)) > 20
    assert all(a == b for a, b in zip(draws, others) if a.tokens < 8190 and b.tokens > 1125)


@pytest.mark.parametrize(
    ("sampler", "length"), [(BudgetSampler(), 32), (BudgetSampler("fixed", window=64), 64)]
)
def test_a_budget_that_holds_everything_is_refused(sampler, length):
    with pytest.raises(ValueError, match=f"expected a document of at least {length + 1} tokens"):
        sampler.draw(0, length)
    sampler.draw(0, length + 1)


@pytest.mark.parametrize("wrong", [{"kind": "x"}, {"placement": "x"}, {"window": 0}])
def test_wrong_settings(wrong):
    with pytest.raises(ValueError, match="expected"):
        BudgetSampler(**wrong)
