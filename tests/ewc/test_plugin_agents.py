"""EWCPlugin beside agents: which likelihood their Fisher is of."""

from typing import Any

import pytest
import torch
from ewc_cases import assert_same, snapshot
from rl_cases import actor_critic, dqn, two_tasks
from torch import distributions

from avl_plugins import EWCPlugin
from avl_plugins.rl import policy


@pytest.mark.parametrize("likelihood", ["categorical", "bernoulli", "gaussian"])
def test_an_actor_critics_value_is_no_logit(likelihood: Any) -> None:
    strategy = actor_critic(plugins=[EWCPlugin(ewc_lambda=1.0, likelihood=likelihood)])
    before = snapshot(strategy.model)
    with pytest.raises(ValueError, match=f"likelihood='{likelihood}' contradicts ActorCritic"):
        strategy.train(two_tasks().train_stream[0])
    assert_same(snapshot(strategy.model), before, rtol=0, atol=0)


def nothing(z: Any) -> Any:
    return z.sum()


@pytest.mark.parametrize("make_strategy", [actor_critic, dqn])
@pytest.mark.parametrize(
    ("likelihood", "error", "message"),
    [
        (lambda z: distributions.Normal(z, 1.0), ValueError, "labels='exact' cannot enumerate Normal"),
        (nothing, TypeError, "returns a torch.distributions.Distribution"),
    ],
)
def test_a_likelihood_that_cannot_be_used_is_refused_at_the_first_mini_batch(
    make_strategy: Any, likelihood: Any, error: Any, message: str
) -> None:
    strategy = make_strategy(plugins=[EWCPlugin(ewc_lambda=1.0, likelihood=likelihood)])
    before = snapshot(strategy.model)
    with pytest.raises(error, match=message):
        strategy.train(two_tasks().train_stream[0])
    assert_same(snapshot(strategy.model), before, rtol=0, atol=0)
    assert strategy.updates == 0


@pytest.mark.parametrize("labels", ["empirical", "batch"])
def test_an_agent_has_no_targets(labels: Any) -> None:
    strategy = actor_critic(plugins=[EWCPlugin(ewc_lambda=1.0, fisher_labels=labels)])
    with pytest.raises(ValueError, match=f"fisher_labels='{labels}' needs targets, of which ActorCritic has none"):
        strategy.train(two_tasks().train_stream[0])


@pytest.mark.parametrize("own_data", [False, True])
def test_the_policys_fisher_leaves_the_value_alone(own_data: bool) -> None:
    data = (lambda strategy: strategy.fisher_batches()) if own_data else None
    ewc = EWCPlugin(ewc_lambda=1.0, likelihood=policy, fisher_data=data)
    actor_critic(plugins=[ewc]).train(two_tasks().train_stream[0])
    assert torch.count_nonzero(ewc.importances["2.weight"][-1]) == 0
    assert torch.count_nonzero(ewc.importances["2.weight"][:-1]) > 0
