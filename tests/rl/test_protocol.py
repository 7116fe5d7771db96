"""What EWC asks of strategies that act in environments."""

import pytest
import torch
from avalanche.training import Naive
from rl_cases import actor_critic, dqn, mlp, quiet, recognition, two_tasks
from torch import nn

from avl_plugins import EWCPlugin
from avl_plugins.rl import policy
from avl_plugins.tasks.protocols import ActsInEnvironments


def test_agents_fulfil_the_protocol_and_other_strategies_do_not():
    assert isinstance(actor_critic(), ActsInEnvironments)
    assert isinstance(dqn(), ActsInEnvironments)
    model = nn.Linear(2, 2)
    assert not isinstance(
        Naive(model=model, optimizer=torch.optim.SGD(model.parameters(), lr=0.1), evaluator=quiet()), ActsInEnvironments
    )
    assert actor_critic().fisher_likelihood() is policy
    assert dqn().fisher_likelihood() is None


def importances(**kwargs):
    torch.manual_seed(0)
    ewc = EWCPlugin(ewc_lambda=1.0, **kwargs)
    strategy = actor_critic(plugins=[ewc])
    strategy.train(two_tasks().train_stream[0])
    return ewc.importances


def test_an_actor_critics_fisher_is_its_policys_by_default():
    default, explicit = importances(), importances(likelihood=policy)
    assert default.keys() == explicit.keys() == {"0.weight", "0.bias", "2.weight", "2.bias"}
    assert all(torch.equal(default[name], explicit[name]) for name in default)
    # (p1 - e1)^2 has the expectation p1 p2 over either of two actions, 1/4 where they are as likely.
    assert default["2.bias"][0] == default["2.bias"][1]
    assert 0.2 < float(default["2.bias"][0]) <= 0.25
    assert default["2.bias"][2] == 0, "the value is not protected"


def test_a_dqns_likelihood_has_to_be_given_before_the_work():
    ewc = EWCPlugin(ewc_lambda=1.0)
    strategy = dqn(plugins=[ewc])
    before = {name: value.clone() for name, value in strategy.model.state_dict().items()}
    with pytest.raises(ValueError, match="likelihood must be given for DQN, whose outputs may be taken for"):
        strategy.train(two_tasks().train_stream[0])
    assert strategy.steps == strategy.updates == ewc.tasks == 0
    assert all(torch.equal(value, before[name]) for name, value in strategy.model.state_dict().items())
    uniform = EWCPlugin(ewc_lambda=1.0, importance="uniform")
    dqn(plugins=[uniform]).train(two_tasks().train_stream[0])
    assert all(bool((f == 1).all()) for f in uniform.importances.values())


def test_recognised_tasks_need_terms_that_are_replaced():
    strategy = dqn(mlp(2), plugins=[recognition(), EWCPlugin(ewc_lambda=1.0, likelihood="gaussian")])
    with pytest.raises(ValueError, match="revisits of EWCPlugin must be 'replace' where tasks are recognised"):
        strategy.train(two_tasks().train_stream[0])
    assert strategy.steps == 0
