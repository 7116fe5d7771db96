"""EWCPlugin beside agents: which likelihood, and networks that have other outputs than the agent reads."""

from typing import Any

import pytest
import torch
from ewc_cases import assert_same, snapshot
from rl_cases import actor_critic, dqn, mlp, two_tasks

from avl_plugins import EWCPlugin
from avl_plugins.rl import policy

OUTPUTS = {actor_critic: 3, dqn: 2}  # of two actions, and the value


@pytest.mark.parametrize("make_strategy", OUTPUTS)
def test_an_agent_has_no_criterion_to_take_the_likelihood_from(make_strategy: Any) -> None:
    strategy = make_strategy(plugins=[EWCPlugin(ewc_lambda=1.0)])
    before = snapshot(strategy.model)
    with pytest.raises(ValueError, match=r"likelihood: \w+ has no criterion .* pass likelihood=policy"):
        strategy.train(two_tasks().train_stream[0])
    assert_same(snapshot(strategy.model), before, rtol=0, atol=0)
    uniform = EWCPlugin(ewc_lambda=1.0, importance="uniform")
    make_strategy(plugins=[uniform]).train(two_tasks().train_stream[0])
    assert uniform.tasks == 1


@pytest.mark.parametrize("likelihood", ["categorical", "bernoulli", "gaussian"])
def test_an_actor_critics_value_is_no_logit(likelihood: Any) -> None:
    strategy = actor_critic(plugins=[EWCPlugin(ewc_lambda=1.0, likelihood=likelihood)])
    before = snapshot(strategy.model)
    with pytest.raises(ValueError, match=r"likelihood: the 3 outputs .* not only those of its 2 actions"):
        strategy.train(two_tasks().train_stream[0])
    assert_same(snapshot(strategy.model), before, rtol=0, atol=0)


@pytest.mark.parametrize("more", [-1, 1])
@pytest.mark.parametrize("make_strategy", OUTPUTS)
def test_a_network_with_other_outputs_is_refused_before_it_is_trained(make_strategy: Any, more: int) -> None:
    right = OUTPUTS[make_strategy]
    network = mlp(right + more)
    likelihood: Any = policy if make_strategy is actor_critic else "gaussian"
    strategy = make_strategy(network, plugins=[EWCPlugin(ewc_lambda=1.0, likelihood=likelihood)])
    before = snapshot(network)
    with pytest.raises(
        ValueError, match=f"reads {right} outputs for the 2 actions of a, and the network has {right + more}"
    ):
        strategy.train(two_tasks().train_stream[0])
    assert_same(snapshot(network), before, rtol=0, atol=0)


@pytest.mark.parametrize("own_data", [False, True])
def test_the_policys_fisher_leaves_the_value_alone(own_data: bool) -> None:
    data = (lambda strategy: strategy.fisher_batches()) if own_data else None
    ewc = EWCPlugin(ewc_lambda=1.0, likelihood=policy, fisher_data=data)
    actor_critic(plugins=[ewc]).train(two_tasks().train_stream[0])
    assert torch.count_nonzero(ewc.importances["2.weight"][-1]) == 0
    assert torch.count_nonzero(ewc.importances["2.weight"][:-1]) > 0
