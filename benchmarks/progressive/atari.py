"""Progressive Networks, Atari (Table 1, Fig. 7): transfer from one to three games to twelve others.

The paper: columns learn Pong, River Raid or Seaquest, or two or all of them in turn, and then each of twelve target
games, as A3C agents with all 18 actions. Baselines: 1, a column on the target alone; 2, the source's net, of which the
output layer is finetuned; 3, all of it finetuned; 4, two columns, the first random and frozen. Transfer is the area
under the target's learning curve relative to baseline 1's: positive in 8 of 12 games with columns, in 5 with
finetuning. It is best where old and new features are mixed. Each column learns for 4e7 agent steps; a number is the
mean of the best 3 of 25 jobs that search the learning rate, the entropy's weight, the gradient's norm and alpha.

What we do: the same at paper scale, all games, arms and columns, which takes months of a core. The other scales only
check that it runs, on one source and one target; what they print is no result. A column is the paper's: convolutions
of 12 maps, 8 x 8 with stride 4, 4 x 4 with stride 2 and 3 x 4 with stride 1, and 256 units. Three columns have every
ordered pair of sources; four have the paper's example, Seaquest, River Raid and Pong in turn, as it does not say which
orders it has. A point of a learning curve is the mean score of the episodes that ended in an epoch, and its area is
counted from random play's score. A source is learnt once for all arms, in the folder "sources" beside the unfinished
jobs; remove that folder after a change of the code.

Deviations: one setting for all arms and one run a seed in place of the best 3 of 25; it is the one with which agents
learn Pong (`progressive-pong-soup`). Adam with generalised advantages over 32 steps, divided by their deviation, in
place of RMSProp with returns of 5 steps; 8 environments in step, whose states are learnt from in mini-batches of 64
with proximal policy optimisation's clipped ratio, in place of 16 workers that do not wait; rewards clipped to 1, as DQN
and A3C have it, for learning only. The paper does not say from which score it counts its areas. Its third column of
Table 1, Labyrinth, is printed and not reproduced: DeepMind Lab cannot be installed.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from itertools import permutations
from statistics import fmean
from typing import TYPE_CHECKING, Any, Literal

from benchmarks.harness.experiment import Context, Experiment, Row, Run
from benchmarks.progressive._transfer_agents import AgentSettings, arms_with_pairs, available

if TYPE_CHECKING:
    from matplotlib.figure import Figure

GAMES = ("pong", "riverraid", "seaquest")
"""The sources."""
TARGETS = (
    "alien",
    "asterix",
    "boxing",
    "centipede",
    "gopher",
    "hero",
    "jamesbond",
    "krull",
    "road_runner",
    "robotank",
    "star_gunner",
    "wizard_of_wor",
)
_EACH = tuple((game,) for game in GAMES)
SOURCES = {
    "baseline1": ((),),
    "baseline2": _EACH,
    "baseline3": _EACH,
    "baseline4": (("random",),),
    "progressive2": _EACH,
    "progressive3": tuple(permutations(GAMES, 2)),
    "progressive4": (("seaquest", "riverraid", "pong"),),
}
"""What each arm has learnt before the target; "random" is a column that has learnt nothing."""


@dataclass(frozen=True)
class Settings(AgentSettings):
    """Atari games."""

    data: Literal["atari"] = "atari"
    """The games' collection."""
    targets: tuple[str, ...] = ("boxing",)
    """Games to learn as targets, by ALE's names."""
    sources: tuple[str, ...] = ("pong",)
    """Games to learn before: pong, riverraid, seaquest; two of them for three columns, too, all for four."""
    steps: int = 200_000
    """Agent steps of each column, all environments together."""
    units: int = 256
    """Units of a column's fully connected layer."""


def measure(settings: Settings, arm: str, seed: int, context: Context) -> dict[str, Any]:
    """Learning curve, its area, the final score and, for two columns and more, AFS of every pair."""
    from avl_plugins.rl import ATARI_SCORES, AtariEnv
    from benchmarks.progressive._transfer_agents import Transfer
    from benchmarks.training.models import strided_body

    sources = available(SOURCES, settings.sources)
    games = [*settings.targets, *settings.sources]
    convolutions = [(12, (8, 8), 4), (12, (4, 4), 2), (12, (3, 4), 1)]
    transfer = Transfer(
        settings,
        tasks={
            game: AtariEnv(game=game, max_frames=settings.max_frames, threads=context.threads)
            for game in dict.fromkeys(games)
        },
        floors={game: ATARI_SCORES[game].random for game in games},
        references={game: ATARI_SCORES[game] for game in games},
        body=lambda: strided_body((4, 84, 84), convolutions, settings.units),
        sources=sources,
        seed=seed,
        context=context,
    )
    return transfer.measure(arm, sources[arm])


def rows(runs: Sequence[Run]) -> list[Row]:
    """Transfer beside Table 1, the number of games with positive transfer, and Table 1's Labyrinth, not measured."""
    from benchmarks.harness.papers import paper
    from benchmarks.progressive._transfer_cells import scored, transfers
    from benchmarks.progressive._transfer_rows import table1_rows
    from benchmarks.report.table import mean_row

    numbers = paper("progressive")
    known = scored(runs)

    def positive(run: Run) -> float:
        by_target: dict[str, list[float]] = {}
        for (_, target), score in transfers(run, known).items():
            by_target.setdefault(target, []).append(score)
        return sum(fmean(scores) > 1 for scores in by_target.values())

    table = table1_rows(runs, numbers["table1"]["atari"], sources=SOURCES, targets=TARGETS)
    if known:
        table += [
            mean_row(
                known,
                arm,
                "targets with a mean transfer above 1",
                value=positive,
                paper=numbers["atari"][f"positive_{kind}"],
                note="of 12; the paper does not say how it counts over sources and columns",
            )
            for arm, kind in (("progressive2", "progressive"), ("baseline3", "baseline3"))
        ]
    note = "DeepMind Lab cannot be installed, so that this is not reproduced"
    for arm, printed in numbers["table1"]["labyrinth"].items():
        for name, value in printed.items():  # no run has such an arm
            table.append(mean_row(runs, f"{arm}, Labyrinth", f"{name} transfer", paper=value, note=note))
    return table


def figure(runs: Sequence[Run]) -> Figure:
    """Transfer by source and target, and Fig. 7: transfer against the new column's part in the convolutions."""
    from matplotlib.figure import Figure

    from benchmarks.progressive._transfer_cells import mean_transfers
    from benchmarks.progressive._transfer_figure import fisher_and_transfer, transfer_matrix

    fig = Figure(figsize=(11, 6.5), layout="constrained")
    left, right = fig.subplots(1, 2, width_ratios=(2.2, 1))
    matrix = {arm: mean_transfers(runs, arm) for arm in SOURCES if arm != "baseline1"}
    image = transfer_matrix(left, matrix, "transfer, measured", sources=SOURCES, targets=TARGETS)
    fig.colorbar(image, ax=left, label="transfer score, colours cut off at 0 and 2", shrink=0.8)
    fisher_and_transfer(right, runs, ("progressive2", "progressive3", "progressive4"))
    right.set_title("the paper: best in the middle", fontsize="medium")
    return fig


EXPERIMENT = Experiment(
    name="progressive-atari",
    title="Progressive Networks, Atari: transfer from three games to twelve others",
    data="atari",
    arms=partial(arms_with_pairs, SOURCES),
    scales={
        "smoke": Settings(
            steps=80, epoch_steps=40, units=8, num_envs=1, rollout=10, eval_episodes=1, analysis=8, max_frames=80
        ),
        "cpu": Settings(),
        "paper": Settings(targets=TARGETS, sources=GAMES, steps=40_000_000, epoch_steps=1_000_000),
    },
    minutes={"smoke": 0.2, "cpu": 30, "paper": 160_000},
    measure=measure,
    rows=rows,
    figure=figure,
    extras=("rl",),
)
