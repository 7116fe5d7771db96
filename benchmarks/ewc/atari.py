"""EWC, Fig. 3A and 3B: games learnt in turn and again, by a DQN that is told which game it plays, or finds out.

The paper: ten games drawn from nineteen of Atari's that a DQN learns, visited again and again in random order. One
network with gains and biases for each game, a replay buffer and a timer of epsilon for each, double DQN. EWC's Fisher
is computed at every switch from the game's own buffer and replaces the game's term; a game is protected after 20
million frames in it. The game is inferred from the frames ("inferred") or given ("oracle"); "none" is without penalty.
Scores are normalised by random play and a person's, clipped above at 1 and summed.

What we do: at paper scale that, on ALE; it has not been run. At cpu scale the same agent with a small network (16 maps
of 3 x 3 and 128 units) on three of MinAtar's games (Young and Tian 2019), which are not Atari's: three visits each, in
a random order in each round. Waiting, the fall of epsilon and protection are scaled to the shorter visits; a game is
protected after 0.8 of a visit, as a game that is to be recognised has not quite all of its first one. "separate" has an
agent for each game with the same visits. A game's 1 is the mean return of the separate agents at the end, over seeds,
and its 0 that of a random player, as MinAtar has no scores of people. Lambda is chosen for "oracle" on two seeds that
are not used afterwards, by the returns of the last round, each above and relative to random play. One seed was not
enough, as lambda depends on the order of the games. Where Breakout came first, 400 was the best of 40 to 40,000, and 4,
tried later, is better. Seed 0 was then measured with 400; Seaquest came first there, the others were hardly learnt, and
"oracle" had 0.22 a game and "inferred" 0.13 where "none" had 0.46. That measurement is not kept, and the search was
widened.

While a game is visited again, its own old term stays in the loss until the visit or its label ends, when the new one
takes its place; the paper does not say whether it does. Normalised and total scores are logged for ALE's games;
MinAtar's can only be computed afterwards, when separate agents have been measured.

Deviations: lambda 400 is the paper's; it does not say for which likelihood. Ours takes Q for the mean of a normal
distribution. RMSProp has an eps such that the paper's largest learning rate, 2.5e-3, holds at paper scale; at cpu scale
it is ten times that (`benchmarks.training.models.dqn_rmsprop`), with which an agent on Space Invaders learnt four times
as much in 40,000 steps (one run each, not recorded here). The norm of 50 bounds the gradient of a mini-batch's mean,
not of its sum. Several environments in step. Evaluation after each visit, with epsilon 0.01. The recognition has
windows of 32 frames at cpu scale, where the paper has 4 (with those, MinAtar's games pass for one another: see
`TaskRecognition`); at both scales three windows have to agree, and EWC leaves a game alone that was taken to be played
for a tenth of a visit only (cpu; a fiftieth at paper scale), where the paper takes the most probable game of each
window.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import Any, Literal

from benchmarks.ewc._game_scores import ARMS, final_total, game_figure, game_rows
from benchmarks.harness.experiment import Context, Experiment
from benchmarks.harness.search import best, search_jobs, split_name

POOL = (
    "crazy_climber",
    "riverraid",
    "jamesbond",
    "breakout",
    "gopher",
    "kangaroo",
    "kung_fu_master",
    "fishing_derby",
    "enduro",
    "pong",
    "star_gunner",
    "demon_attack",
    "boxing",
    "asterix",
    "road_runner",
    "defender",
    "freeway",
    "krull",
    "space_invaders",
)
"""The paper's, in the order of its Fig. 4."""


@dataclass(frozen=True)
class Settings:
    """A stream of games that recur."""

    data: Literal["minatar", "ale"] = "minatar"
    """Whose games: minatar's, or those of ale."""
    games: tuple[str, ...] = ("breakout", "space_invaders", "seaquest")
    """Games to draw from."""
    drawn: int = 3
    """Games that are drawn for a seed."""
    visits: int = 3
    """Visits to each game; every round has its own order."""
    steps: int = 60_000
    """Agent steps of a visit."""
    epoch_steps: int = 20_000
    """Agent steps of an epoch, a point of the learning curve."""
    num_envs: int = 4
    """Environments that are stepped together; an update each step of all."""
    lr: float = 2.5e-4
    """Learning rate of RMSProp (decay 0.95)."""
    max_lr: float = 2.5e-2
    """Largest learning rate: eps of RMSProp is lr / max_lr / 32."""
    buffer_size: int = 50_000
    """Transitions in a game's replay buffer."""
    learning_starts: int = 2_000
    """Transitions in it before the first update."""
    target_every: int = 250
    """Updates between copies of Q."""
    epsilon_wait: int = 2_000
    """Agent steps of random play in a game."""
    epsilon_steps: int = 40_000
    """Agent steps in which epsilon falls to 0.01."""
    protect_after: int = 48_000
    """Agent steps in a game after which EWC protects it."""
    ewc_lambda: float = 0.0
    """Lambda of EWC; 0 for the one searched."""
    ewc_lambdas: tuple[float, ...] = (0.4, 4, 40, 400)
    """Lambdas that are searched."""
    fisher_states: int = 3200
    """States for a Fisher."""
    observe_every: int = 4
    """Agent steps between frames that the recognition of games sees."""
    window: int = 32
    """Frames of a window of the recognition; the paper's 4 cannot tell MinAtar's games apart."""
    concentration: float = 0.3
    """Of the recognition's prior, for each level of a pixel."""
    agreeing: int = 3
    """Windows in a row that have to agree before another game is taken to be played."""
    least_held: int = 6_000
    """Agent steps that a game has to be taken to be played for, without a break, before EWC protects it."""
    max_contexts: int | None = 12
    """Most games that it tells apart."""
    eval_episodes: int = 20
    """Episodes of an evaluation in each game."""
    max_steps: int = 5_000
    """Agent steps of an episode at most."""


def make_games(settings: Settings, seed: int) -> dict[str, Any]:
    """Draw the seed's games and make their factories."""
    import random

    from avl_plugins.rl import AtariEnv
    from benchmarks.envs.minatar import MinAtarEnv

    if settings.data not in ("minatar", "ale"):
        raise ValueError(f"data must be 'minatar' or 'ale', got {settings.data!r}")
    names = random.Random(seed).sample(settings.games, settings.drawn)
    if settings.data == "minatar":
        return {name: MinAtarEnv(game=name, dtype="bool", max_steps=settings.max_steps) for name in names}
    return {name: AtariEnv(game=name, max_frames=4 * settings.max_steps) for name in names}


def make_schedule(names: Sequence[str], visits: int, seed: int) -> list[str]:
    """Every game once in each round, in an order of the round's own; none twice in a row, where there are several."""
    import random

    draw, schedule = random.Random(1000 + seed), list[str]()
    for _ in range(visits):
        order = draw.sample(list(names), len(names))
        if schedule and len(order) > 1 and order[0] == schedule[-1]:
            order = [*order[1:], order[0]]
        schedule += order
    return schedule


def make_layers(data: str) -> Any:
    """Make the network's layers: the paper's, or small ones for MinAtar."""
    from torch import nn

    if data == "minatar":
        return nn.Sequential(
            nn.Conv2d(10, 16, 3), nn.ReLU(), nn.Flatten(), nn.Linear(1024, 128), nn.ReLU(), nn.Linear(128, 6)
        )
    convolutions = ((4, 32, 8, 4), (32, 64, 4, 2), (64, 128, 3, 1))
    layers = [layer for a, b, size, stride in convolutions for layer in (nn.Conv2d(a, b, size, stride), nn.ReLU())]
    return nn.Sequential(*layers, nn.Flatten(), nn.Linear(128 * 49, 1024), nn.ReLU(), nn.Linear(1024, 18))


def make_recognition(settings: Settings) -> Any:
    """Make the plugin that infers which game is played."""
    from avl_plugins.rl import TaskRecognition, TaskRecognitionPlugin
    from avl_plugins.rl.recognition import observation_levels

    if settings.data == "minatar":
        shape, number, levels = (10, 10), 11, partial(observation_levels, levels=11, channels=1)
    else:
        shape, number, levels = (42, 42), 16, None
    model = TaskRecognition(
        shape=shape,
        levels=number,
        window=settings.window,
        concentration=settings.concentration,
        max_contexts=settings.max_contexts,
    )
    return TaskRecognitionPlugin(
        model,
        every=settings.observe_every,
        agreeing=settings.agreeing,
        least_held=settings.least_held,
        levels=levels,
    )


def measure(settings: Settings, arm: str, seed: int, context: Context) -> dict[str, Any]:
    """Mean return on each game after each visit, learning curves, and how games were recognised."""
    import warnings

    import torch

    from avl_plugins import EWCPlugin, ProgressiveNetwork, ProgressivePlugin
    from avl_plugins.rl import ATARI_SCORES, DQN, TaskGains, rl_benchmark
    from benchmarks.training.agents import learning_curves, make_evaluator, random_return, returns_after
    from benchmarks.training.models import dqn_rmsprop
    from benchmarks.training.supervised import job_plugins, train_stream

    torch.manual_seed(seed)
    arm, value = split_name(arm)
    if arm in ("inferred", "oracle") and not settings.ewc_lambda:
        settings = replace(settings, ewc_lambda=value or best(context.search, search_of(arm), final_total))
    games = make_games(settings, seed)
    schedule = make_schedule(list(games), settings.visits, seed)
    benchmark = rl_benchmark(games, steps=settings.steps, schedule=schedule)
    recognition = make_recognition(settings) if arm == "inferred" else None
    plugins: list[Any] = [recognition] if recognition else []
    if arm in ("inferred", "oracle"):
        protect = partial(learnt_long_enough, steps=settings.protect_after)
        plugins.append(
            EWCPlugin(ewc_lambda=settings.ewc_lambda, likelihood="gaussian", revisits="replace", protect=protect)
        )
    layers = make_layers(settings.data)
    if arm == "separate":
        model: Any = ProgressiveNetwork(layers[:-1], adapter=None, retrain=True)
        plugins.append(ProgressivePlugin())
    else:
        model = TaskGains(layers)
    strategy = DQN(
        model=model,
        optimizer=dqn_rmsprop(model, lr=settings.lr, max_lr=settings.max_lr),
        num_envs=settings.num_envs,
        train_every=settings.num_envs,
        buffer_size=settings.buffer_size,
        stacked=settings.data == "ale",
        learning_starts=settings.learning_starts,
        target_every=settings.target_every,
        epsilon_wait=settings.epsilon_wait,
        epsilon_steps=settings.epsilon_steps,
        epoch_steps=settings.epoch_steps,
        fisher_states=settings.fisher_states,
        eval_episodes=settings.eval_episodes,
        eval_envs=settings.eval_episodes,
        seed=seed,
        device=context.device,
        plugins=[*plugins, *job_plugins(context, len(schedule))],
        evaluator=make_evaluator(context, ATARI_SCORES if settings.data == "ale" else None),
    )
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", r"task \d+ has not been trained on yet")
        train_stream(strategy, benchmark, context, whole=True)
    names = list(games)
    return {
        "printed": {name: list(ATARI_SCORES[name]) for name in names} if settings.data == "ale" else {},
        "random": {e.name: random_return(e, settings.eval_episodes, seed) for e in benchmark.test_stream},
        "schedule": schedule,
        "returns": {names[label]: values for label, values in returns_after(strategy).items()},
        "curves": {names[label]: curve for label, curve in learning_curves(strategy).items()},
        "contexts": recognition.recognition.contexts if recognition else None,
        "purity": recognition.purity if recognition else None,
    }


def learnt_long_enough(strategy: Any, steps: int) -> bool:
    """Whether the game that is played has been learnt for so many agent steps."""
    return strategy.steps_of[strategy.label] >= steps


def search(settings: Settings) -> list[tuple[str, int]]:
    """The arm that is told the game, at every lambda, where none is given."""
    return [] if settings.ewc_lambda else search_jobs("oracle", "lambda", settings.ewc_lambdas, seeds=2)


def search_of(arm: str) -> str:
    """Return the arm whose lambda an arm takes."""
    return "oracle" if arm == "inferred" else arm


EXPERIMENT = Experiment(
    name="ewc-atari",
    title="EWC, Fig. 3A and 3B: games learnt in turn and again (at cpu scale MinAtar's)",
    data="minatar",
    arms=ARMS,
    scales={
        "smoke": Settings(
            games=("breakout", "space_invaders"),
            drawn=2,
            visits=2,
            steps=64,
            epoch_steps=64,
            buffer_size=64,
            learning_starts=16,
            target_every=5,
            epsilon_wait=16,
            epsilon_steps=40,
            protect_after=48,
            ewc_lambdas=(400,),
            fisher_states=64,
            observe_every=1,
            window=4,
            concentration=0.03,
            agreeing=1,
            least_held=8,
            eval_episodes=2,
            max_steps=40,
        ),
        "cpu": Settings(),
        "paper": Settings(
            data="ale",
            games=POOL,
            drawn=10,
            visits=12,
            steps=1_000_000,
            epoch_steps=250_000,
            max_lr=2.5e-3,
            learning_starts=50_000,
            target_every=7_500,
            epsilon_wait=50_000,
            epsilon_steps=1_000_000,
            protect_after=5_000_000,
            ewc_lambda=400,
            window=4,
            concentration=0.03,
            least_held=20_000,
            max_contexts=None,
            eval_episodes=10,
            max_steps=27_000,
        ),
    },
    minutes={"smoke": 0.3, "cpu": 145, "paper": 200_000},
    measure=measure,
    rows=game_rows,
    figure=game_figure,
    search=search,
    search_of=search_of,
    extras=("rl", "minatar"),
)
