"""What the experiments of reinforcement learning share: an evaluator, the arms' networks, returns as a matrix."""

from __future__ import annotations

import warnings
from collections.abc import Mapping
from typing import Any

from avalanche.core import SupervisedPlugin
from avalanche.logging import TensorboardLogger
from avalanche.training.plugins import EvaluationPlugin
from torch import nn

from avl_plugins import EWCPlugin, ProgressiveNetwork, ProgressivePlugin
from avl_plugins.metrics import capacity_metrics, return_metrics, rollout_metrics
from avl_plugins.rl import TaskGains, policy
from benchmarks.harness.experiment import Context
from benchmarks.training.supervised import Evaluator, accuracy_curves

ARMS = ("single", "finetune", "ewc", "progressive")


def agent(settings: Any, model: nn.Module, *, optimizer: str = "rmsprop", adam_eps: float = 1e-8, **kwargs: Any) -> Any:
    """Make an actor-critic of settings with num_envs, rollout, lr, entropy, grad_norm and gamma.

    Args:
        settings: These.
        model: Its network.
        optimizer: "rmsprop" or "adam".
        adam_eps: Eps of Adam.
        **kwargs: Other arguments of `ActorCritic`.
    """
    from avl_plugins.rl import ActorCritic
    from benchmarks.training.models import optimizer as make_optimizer

    return ActorCritic(
        model=model,
        optimizer=make_optimizer(optimizer, model, lr=settings.lr, adam_eps=adam_eps),
        num_envs=settings.num_envs,
        rollout=settings.rollout,
        entropy_weight=settings.entropy,
        max_grad_norm=settings.grad_norm,
        gamma=settings.gamma,
        **kwargs,
    )


def make_network(arm: str, body: nn.Sequential, features: int, outputs: int) -> nn.Module:
    """Make an arm's network: columns with or without connections, or layers that tasks share but for gains and biases.

    Raises:
        ValueError: If there is no such arm.
    """
    if arm not in ARMS:
        raise ValueError(f"arm {arm!r}: expected one of {', '.join(ARMS)}")
    if arm in ("progressive", "single"):
        return ProgressiveNetwork(body, adapter="mlp" if arm == "progressive" else None)
    return TaskGains(body.append(nn.Linear(features, outputs)))


def method_plugins(arm: str, ewc_lambda: float) -> list[SupervisedPlugin]:
    """Make the plugin that makes an arm what it is."""
    if arm in ("progressive", "single"):
        return [ProgressivePlugin()]
    return [EWCPlugin(ewc_lambda=ewc_lambda, likelihood=policy, revisits="replace")] if arm == "ewc" else []


def make_evaluator(
    context: Context, references: Mapping[str, tuple[float, float]] | None = None, *more: Any
) -> EvaluationPlugin:
    """Returns, lengths, speed, capacity and pictures, logged to the job's TensorBoard folder."""
    loggers = [TensorboardLogger(tb_log_dir=str(context.logdir))] if context.logdir else []
    metrics = (return_metrics(references=references), capacity_metrics(), rollout_metrics(), *more)
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "No loggers specified")
        return Evaluator(*metrics, loggers=loggers)


def returns_after(strategy: Any) -> dict[int, list[float]]:
    """Mean return of each evaluation by task label, in order."""
    return {label: values for label, (_, values) in accuracy_curves(strategy, metric="Return").items()}


def learning_curves(strategy: Any) -> dict[int, list[tuple[int, float]]]:
    """Points (agent steps in the task, mean return of the epoch) by task label."""
    from avl_plugins.metrics.rl import EpisodeMean

    metric = next(m for m in strategy.evaluator.metrics if isinstance(m, EpisodeMean) and m.name == "Return")
    return {label: [(x, round(y, 3)) for x, y in curve] for label, curve in sorted(metric.curves.items())}


def random_return(experience: Any, episodes: int, seed: int) -> float:
    """Mean return of so many episodes of random play."""
    import torch

    from avl_plugins.rl.environments import Environments

    generator = torch.Generator().manual_seed(seed)
    environments = Environments(experience, episodes)
    try:
        environments.reset(seed)
        first: dict[int, float] = {}
        while len(first) < episodes:
            environments.step(torch.randint(experience.actions, (episodes,), generator=generator))
            for episode in environments.finished:
                first.setdefault(episode.env, episode.total)
        return sum(first.values()) / episodes
    finally:
        environments.close()
