"""EWC, Fig. 3C: how much weight noise a trained agent bears when the noise follows the Fisher.

The paper: a trained Breakout agent plays with Gaussian noise on its weights, drawn anew at every time step, 10 full
episodes a point. Its score, relative to the unperturbed one, is plotted over the noise's standard deviation for three
covariances: uniform; the inverse Fisher (F + damping)^-1; uniform within the null space of the Fisher. The last two are
borne about 14 times better than uniform noise.

What we do: the same, with a DQN on MinAtar's Breakout at cpu scale, and on ALE's Breakout with the paper's network and
settings at paper scale. Scaling, damping and null space are not stated: they are those of `ewc-fig3c`, the same on a
classifier (see benchmarks/weight_noise.py), where they were settled after seeing its results. Nothing else was tuned
here by the tolerance. The Fisher is over 100 mini-batches of 32 states from the replay buffer. Its likelihood is not
stated either: Q is taken for the mean of a normal distribution of variance 1.
Deviations: the episodes of a point are played side by side, and a draw is shared by those that are at the same step.
Actions are random with the probability of evaluations, as in training's end. The agent has biases and no gains of its
own for the game. Adam at cpu scale; at paper scale RMSProp, with an eps such that the paper's largest learning rate,
2.5e-3, holds (`benchmarks.training.models.dqn_rmsprop`). All three covariances perturb the same agent: a job is a seed.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, Literal

from benchmarks.ewc._weight_noise import COVARIANCES, noise_figure, noise_rows
from benchmarks.harness.experiment import Context, Experiment, Row, Run

if TYPE_CHECKING:
    from matplotlib.figure import Figure


@dataclass(frozen=True)
class Settings:
    """Weight noise on a trained agent."""

    data: Literal["minatar-breakout", "ale-breakout"] = "minatar-breakout"
    """The game: minatar-breakout or ale-breakout, with a network for each."""
    steps: int = 200_000
    """Agent steps of training."""
    epoch_steps: int = 20_000
    """Agent steps of an epoch, a point of the learning curve."""
    optimizer: Literal["adam", "rmsprop"] = "adam"
    """Optimizer: adam, or rmsprop with the paper's decay."""
    lr: float = 5e-4
    """Its learning rate."""
    num_envs: int = 4
    """Environments that are stepped together in training."""
    train_every: int = 4
    """Agent steps for each update."""
    buffer_size: int = 50_000
    """Transitions that are kept."""
    learning_starts: int = 5_000
    """Transitions before the first update."""
    target_every: int = 250
    """Updates between copies of the network for the targets."""
    epsilon_steps: int = 50_000
    """Agent steps in which the probability of random actions falls, after `learning_starts` steps at 1."""
    epsilon_end: float = 0.01
    """What it falls to; it is that of evaluations, too."""
    lowest_noise: float = 1e-3
    """Smallest standard deviation of the noise, that of a weight whose Fisher is zero."""
    highest_noise: float = 10.0
    """Largest standard deviation."""
    points: int = 17
    """Log-spaced standard deviations."""
    episodes: int = 30
    """Full episodes for each standard deviation."""
    max_steps: int = 1_000
    """MinAtar's episodes are cut off after so many agent steps."""
    damping: float = 0.001
    """What is added to the Fisher before it is inverted, in units of its mean; weights below it are the null space."""


def measure(settings: Settings, arm: str, seed: int, context: Context) -> dict[str, Any]:
    """Mean return under noise of each covariance, relative to the mean return without."""
    import numpy as np
    import torch

    from avl_plugins import diagonal_fisher
    from benchmarks.ewc._weight_noise import NoisyWeights, half, noise_variance
    from benchmarks.training.agents import learning_curves
    from benchmarks.training.supervised import train_stream

    torch.manual_seed(seed)
    strategy, benchmark = trained_by(settings, seed, context)
    train_stream(strategy, benchmark, context)
    model, visit = strategy.model, benchmark.test_stream[0]
    fishers = diagonal_fisher(model, strategy.fisher_batches(), likelihood="gaussian")
    fisher = torch.cat([f.flatten() for f in fishers.values()])
    unperturbed = play(strategy, visit, settings.episodes, seed)
    noises = np.geomspace(settings.lowest_noise, settings.highest_noise, settings.points).tolist()
    found: dict[str, Any] = {}
    for covariance in COVARIANCES:
        variance = noise_variance(covariance, fisher, settings.damping)
        weights = NoisyWeights(model, variance, seed)
        returns = [play(strategy, visit, settings.episodes, seed, weights, noise) for noise in noises]
        weights.restore()
        scores = [round(value / unperturbed, 4) if unperturbed > 0 else math.nan for value in returns]
        own: dict[str, Any] = {"noise": noises, "score": scores, "unperturbed": unperturbed}
        try:
            tolerated = half(noises, scores)
        except ValueError as error:
            tolerated, own["lacking"] = math.nan, str(error)
        own |= {"half": tolerated, "half_norm": tolerated * float(variance.mean().sqrt())}
        found[covariance] = own
    return found | {"curve": learning_curves(strategy)[0], "zero": float((fisher == 0).float().mean())}


def trained_by(settings: Settings, seed: int, context: Context) -> tuple[Any, Any]:
    """Make the agent, and its game as a benchmark of one visit."""
    import torch

    from avl_plugins.rl import DQN, rl_benchmark
    from benchmarks.training.agents import make_evaluator
    from benchmarks.training.models import dqn_rmsprop
    from benchmarks.training.supervised import job_plugins

    make_env, make_model = games(settings)[settings.data]
    benchmark = rl_benchmark({"breakout": make_env}, steps=settings.steps)
    model = make_model(benchmark.train_stream[0].actions)
    optimizers: dict[str, Any] = {
        "adam": lambda: torch.optim.Adam(model.parameters(), lr=settings.lr),
        "rmsprop": lambda: dqn_rmsprop(model, lr=settings.lr),
    }
    strategy = DQN(
        model=model,
        optimizer=optimizers[settings.optimizer](),
        num_envs=settings.num_envs,
        epoch_steps=settings.epoch_steps,
        train_every=settings.train_every,
        buffer_size=settings.buffer_size,
        stacked=settings.data == "ale-breakout",
        learning_starts=settings.learning_starts,
        target_every=settings.target_every,
        epsilon_wait=settings.learning_starts,
        epsilon_steps=settings.epsilon_steps,
        epsilon_end=settings.epsilon_end,
        eval_episodes=settings.episodes,
        eval_envs=settings.episodes,
        seed=seed,
        device=context.device,
        plugins=job_plugins(context, 1),
        evaluator=make_evaluator(context),
    )
    return strategy, benchmark


def games(settings: Settings) -> dict[str, tuple[Any, Any]]:
    """Environment factory and network, a function of the number of actions, by the game's name."""
    from torch import nn

    from benchmarks.envs.minatar import CHANNELS, MinAtarEnv

    def small(actions: int) -> nn.Sequential:
        convolution = nn.Sequential(nn.Conv2d(CHANNELS, 16, 3), nn.ReLU(), nn.Flatten())
        return nn.Sequential(*convolution, nn.Linear(16 * 8 * 8, 128), nn.ReLU(), nn.Linear(128, actions))

    def papers(actions: int) -> nn.Sequential:
        return nn.Sequential(
            *(nn.Conv2d(4, 32, 8, stride=4), nn.ReLU()),
            *(nn.Conv2d(32, 64, 4, stride=2), nn.ReLU()),
            *(nn.Conv2d(64, 128, 3), nn.ReLU(), nn.Flatten()),
            *(nn.Linear(128 * 7 * 7, 1024), nn.ReLU(), nn.Linear(1024, actions)),
        )

    def ale(number: int) -> Any:
        from avl_plugins.rl import AtariEnv

        return AtariEnv(game="breakout")(number)

    minatar = MinAtarEnv(game="breakout", max_steps=settings.max_steps, dtype="bool")
    return {"minatar-breakout": (minatar, small), "ale-breakout": (ale, papers)}


def play(strategy: Any, visit: Any, episodes: int, seed: int, weights: Any = None, noise: float = 0.0) -> float:
    """Mean return of so many full episodes, the same ones every time, with new noise at each step."""
    import torch

    from avl_plugins.rl.environments import Environments

    environments = Environments(visit, episodes)
    generator = torch.Generator().manual_seed(seed)
    environments.reset(seed)
    first: dict[int, float] = {}
    counted = 0
    with torch.no_grad():
        while len(first) < episodes:
            if weights is not None:
                weights.draw(noise)
            outputs = strategy.outputs(environments.observations).cpu()
            environments.step(strategy.choose(outputs, generator))
            for episode in environments.finished[counted:]:
                first.setdefault(episode.env, episode.total)
            counted = len(environments.finished)
    environments.close()
    return sum(first.values()) / episodes


def by_covariance(runs: Sequence[Run]) -> list[Run]:
    """Return a run for each covariance of every run."""
    return [replace(run, arm=name, measurements=run.measurements[name]) for run in runs for name in COVARIANCES]


def rows(runs: Sequence[Run]) -> list[Row]:
    """Noise that halves the score, and how much more of it the Fisher's covariances allow."""
    return noise_rows(by_covariance(runs), note="paper: ALE's Breakout")


def figure(runs: Sequence[Run]) -> Figure:
    """Score over noise."""
    return noise_figure(by_covariance(runs), "ALE Breakout" if runs[0].data == "ale-breakout" else "MinAtar Breakout")


EXPERIMENT = Experiment(
    name="ewc-fig3c-rl",
    title="EWC, Fig. 3C: weight noise along the Fisher of an agent",
    data="minatar-breakout",
    arms=("dqn",),
    scales={
        "smoke": Settings(
            steps=600,
            epoch_steps=300,
            buffer_size=400,
            learning_starts=200,
            epsilon_steps=200,
            points=4,
            episodes=3,
            max_steps=50,
        ),
        "cpu": Settings(),
        "paper": Settings(
            data="ale-breakout",
            steps=12_500_000,
            epoch_steps=250_000,
            optimizer="rmsprop",
            lr=2.5e-4,
            learning_starts=50_000,
            target_every=7_500,
            epsilon_steps=1_000_000,
            lowest_noise=1e-4,
            highest_noise=3.0,
            points=22,
            episodes=10,
        ),
    },
    minutes={"smoke": 0.2, "cpu": 8, "paper": 6_000},
    measure=measure,
    rows=rows,
    figure=figure,
    extras=("rl", "minatar"),
)
