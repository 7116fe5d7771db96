"""EWC, Fig. 3A and 3B: games learnt in turn and again, by a DQN that is told which game it plays, or finds out.

The paper: ten games drawn from nineteen of Atari's that a DQN learns, visited again and again in random order. One
network with gains and biases for each game, a replay buffer and a timer of epsilon for each, double DQN. EWC's Fisher
is computed at every switch from the game's own buffer and replaces the game's term; a game is protected after 20
million frames in it. The game is inferred from the frames ("inferred") or given ("oracle"); "none" is without penalty.
Scores are normalised by random play and a person's, clipped above at 1 and summed.

What we do: at paper scale that, on ALE; it has not been run. At cpu scale the same agent with a small network (16 maps
of 3 x 3 and 128 units) on three of MinAtar's games (Young and Tian 2019), which are not Atari's: three visits each, in
a random order in each round. Waiting, the fall of epsilon and protection are scaled to the shorter visits. "separate"
has an agent for each game with the same visits. A game's 1 is the mean return of the separate agents at the end, over
seeds, and its 0 that of a random player, as MinAtar has no scores of people. Lambda is chosen for "oracle" on a seed
that is not used afterwards, by the returns of the last round, each above and relative to random play.
Deviations: lambda 400 is the paper's; it does not say for which likelihood. Ours takes Q for the mean of a normal
distribution. Several environments in step. Evaluation after each visit, with epsilon 0.01.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from statistics import fmean
from typing import TYPE_CHECKING, Any

from benchmarks.experiment import Context, Experiment, Row, Run
from benchmarks.papers import paper
from benchmarks.search import best, edge_note, search_jobs, split_name, tried
from benchmarks.table import mean_row, paired_row

if TYPE_CHECKING:
    from matplotlib.figure import Figure

ARMS = ("inferred", "oracle", "none", "separate")
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

    data: str = "minatar"
    """Whose games: minatar's, or those of ale."""
    games: tuple[str, ...] = ("breakout", "space_invaders", "asterix")
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
    protect_after: int = 60_000
    """Agent steps in a game after which EWC protects it."""
    ewc_lambda: float = 0.0
    """Lambda of EWC; 0 for the one searched."""
    ewc_lambdas: tuple[float, ...] = (400, 4000, 40000)
    """Lambdas that are searched."""
    fisher_batches: int = 100
    """Mini-batches of 32 states for a Fisher."""
    observe_every: int = 4
    """Agent steps between frames that the recognition of games sees."""
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
    from benchmarks.minatar_envs import MinAtarEnv

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
        model = TaskRecognition(shape=(10, 10), levels=11, max_contexts=settings.max_contexts)
        levels = partial(observation_levels, levels=11, channels=1)
        return TaskRecognitionPlugin(model, every=settings.observe_every, levels=levels)
    model = TaskRecognition(shape=(42, 42), max_contexts=settings.max_contexts)
    return TaskRecognitionPlugin(model, every=settings.observe_every)


def measure(settings: Settings, arm: str, seed: int, context: Context) -> dict[str, Any]:
    """Mean return on each game after each visit, learning curves, and how games were recognised."""
    import warnings

    import torch

    from avl_plugins import EWCPlugin, ProgressiveNetwork, ProgressivePlugin
    from avl_plugins.rl import DQN, TaskGains, rl_benchmark
    from benchmarks.rl import job_plugins, learning_curves, make_evaluator, random_return, returns_after
    from benchmarks.training import train_stream

    torch.manual_seed(seed)
    arm, value = split_name(arm)
    if arm in ("inferred", "oracle") and not settings.ewc_lambda:
        settings = replace(settings, ewc_lambda=value or best(context.search, "oracle", final_total))
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
        optimizer=torch.optim.RMSprop(model.parameters(), lr=settings.lr, alpha=0.95, eps=0.01),
        num_envs=settings.num_envs,
        train_every=settings.num_envs,
        buffer_size=settings.buffer_size,
        learning_starts=settings.learning_starts,
        target_every=settings.target_every,
        epsilon_wait=settings.epsilon_wait,
        epsilon_steps=settings.epsilon_steps,
        epoch_steps=settings.epoch_steps,
        fisher_batches_of=(settings.fisher_batches, 32),
        eval_episodes=settings.eval_episodes,
        eval_envs=settings.eval_episodes,
        seed=seed,
        device=context.device,
        plugins=[*plugins, *job_plugins(context, len(schedule))],
        evaluator=make_evaluator(context),
    )
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", r"task \d+ has not been trained on yet")
        train_stream(strategy, benchmark, context, whole=True)
    names = list(games)
    return {
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


def last_round(run: Run, game: str) -> float:
    """Mean return on a game over the evaluations after the visits of the last round."""
    values = run.measurements["returns"][game]
    return fmean(values[-len(run.measurements["returns"]) :])


def references(runs: Sequence[Run]) -> dict[str, tuple[float, float]]:
    """By game what is 0, random play, and what is 1: a person's score, or for MinAtar what separate agents reach.

    A game that separate agents have not learnt, or that none has been trained on, has none.
    """
    if runs and runs[0].settings["data"] == "ale":
        from avl_plugins.rl.scores import ATARI_SCORES

        return {game: (float(low), float(high)) for game, (low, high) in ATARI_SCORES.items()}
    found: dict[str, list[tuple[float, float]]] = {}
    for run in runs:
        if run.arm == "separate":
            for game, low in run.measurements["random"].items():
                found.setdefault(game, []).append((low, last_round(run, game)))
    means = {game: (fmean(low for low, _ in both), fmean(high for _, high in both)) for game, both in found.items()}
    return {game: (low, high) for game, (low, high) in means.items() if high > low}


def scores(run: Run, scale: Mapping[str, tuple[float, float]]) -> list[float]:
    """Total score after each visit, divided by the number of games; each game's score is clipped above at 1."""
    games = [game for game in run.measurements["returns"] if game in scale]
    each = [
        [min(1.0, (value - scale[game][0]) / (scale[game][1] - scale[game][0])) for value in values]
        for game, values in run.measurements["returns"].items()
        if game in games
    ]
    return [fmean(values) for values in zip(*each, strict=True)]


def final_score(run: Run, scale: Mapping[str, tuple[float, float]]) -> float:
    """Mean over the last round."""
    return fmean(scores(run, scale)[-len(run.measurements["returns"]) :])


def final_total(run: Run) -> float:
    """Sum over games of the last round's returns above random play, each relative to it: for choosing lambda."""
    random = run.measurements["random"]
    return sum(last_round(run, game) / max(abs(low), 0.5) for game, low in random.items())


def rows(runs: Sequence[Run]) -> list[Row]:
    """Scores at the end and what EWC adds; then returns by game, and how games were recognised."""
    printed = paper("ewc")["fig3b"]
    scale = references(runs)
    found = tried(runs, "oracle", final_total)
    note = ""
    if found:
        chosen = best(runs, "oracle", final_total)
        note = f"lambda {chosen:g}, searched: {', '.join(f'{v:g}' for v in found)}{edge_note(chosen, found)}"
    own = [run for run in runs if run.arm in ARMS]
    table = []
    if scale:
        score = partial(final_score, scale=scale)
        for arm in ARMS:
            ends = printed["end"].get(arm)
            table.append(
                mean_row(
                    runs,
                    arm,
                    "score a game at the end",
                    value=score,
                    paper=None if ends is None else round(ends / printed["games"], 3),
                    note=note if arm == "oracle" else "",
                )
            )
        for better, worse in (("oracle", "none"), ("inferred", "none"), ("oracle", "inferred"), ("separate", "oracle")):
            target = (">=", 0.0) if worse == "none" else None
            table.append(paired_row(own, better, worse, "score a game at the end", value=score, target=target))
    for name in ("contexts", "purity"):
        table.append(mean_row(runs, "inferred", name))
    games = sorted({game for run in own for game in run.measurements["returns"]})
    for game in games:
        for arm in ARMS:
            with_game = [run for run in runs if game in run.measurements["returns"]]
            table.append(mean_row(with_game or runs, arm, f"return, {game}", value=partial(last_round, game=game)))
    return table


def figure(runs: Sequence[Run]) -> Figure:
    """Score over visits beside the paper's Fig. 3B, and the returns on each game."""
    from matplotlib.figure import Figure

    printed, scale = paper("ewc")["fig3b"], references(runs)
    own = [run for run in runs if run.arm in ARMS]
    games = sorted({game for run in own for game in run.measurements["returns"]})[:4]
    fig = Figure(figsize=(3.4 * max(2, len(games)), 6), layout="constrained")
    parts: Any = fig.subfigures(2, 1)
    top, bottom = parts
    ours, theirs = top.subplots(1, 2, sharey=True)
    panels = bottom.subplots(1, max(1, len(games)), squeeze=False)[0]
    for color, arm in enumerate(ARMS):
        seeds = [run for run in own if run.arm == arm]
        if scale and seeds:
            curve = [fmean(values) for values in zip(*(scores(run, scale) for run in seeds), strict=False)]
            ours.plot(range(1, len(curve) + 1), curve, "o-", color=f"C{color}", label=arm)
        if arm in printed:
            heights = [value / printed["games"] for value in printed[arm]]
            theirs.plot([x / 1e6 for x in printed["frames"]], heights, "o-", color=f"C{color}", label=arm)
        for panel, game in zip(panels, games, strict=False):
            lines = [run.measurements["returns"][game] for run in seeds if game in run.measurements["returns"]]
            if lines:
                means = [fmean(values) for values in zip(*lines, strict=False)]
                panel.plot(range(1, len(means) + 1), means, "o-", color=f"C{color}")
    ours.set(xlabel="visits so far", ylabel="score a game", title=f"measured, {runs[0].settings['data']}")
    theirs.set(xlabel="million frames", title="paper, Atari")
    theirs.legend()
    for panel, game in zip(panels, games, strict=False):
        panel.set(xlabel="visits so far", title=game)
    panels[0].set_ylabel("return in evaluation")
    return fig


def search(settings: Settings) -> list[tuple[str, int]]:
    """The arm that is told the game, at every lambda, where none is given."""
    return [] if settings.ewc_lambda else search_jobs("oracle", "lambda", settings.ewc_lambdas)


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
            protect_after=64,
            ewc_lambdas=(400,),
            fisher_batches=2,
            observe_every=1,
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
            learning_starts=50_000,
            target_every=7_500,
            epsilon_wait=50_000,
            epsilon_steps=1_000_000,
            protect_after=5_000_000,
            ewc_lambda=400,
            max_contexts=None,
            eval_episodes=10,
            max_steps=27_000,
        ),
    },
    minutes={"smoke": 0.3, "cpu": 55, "paper": 200_000},
    measure=measure,
    rows=rows,
    figure=figure,
    search=search,
)
