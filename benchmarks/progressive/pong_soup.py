"""Progressive Networks, Pong Soup on Pong itself (Table 1, Figs. 4 and 5): transfer between variants of a game.

The paper: eight variants of Pong (noise, background, zoom, flips), played by A3C agents. A first column learns Pong,
Noisy or H-flip, and each other variant is a target. Baselines: 1, a column on the target alone; 2, the source's net, of
which the output layer is finetuned; 3, all of it finetuned; 4, two columns, the first random and frozen. Transfer is
the area under the target's learning curve relative to baseline 1's: columns beat finetuning, which beats a random one.
Each column learns for 4e7 agent steps; a number is the mean of the best 3 of 25 jobs that search the learning rate, the
entropy's weight, the gradient's norm and alpha, with RMSProp and A3C's returns of 5 steps.

What we do: the same variants (see pong_variants.py), and an actor-critic whose environments are stepped together. A
column has two convolutions (12 maps 8 x 8 with stride 4, 12 maps 4 x 4 with stride 2) and a fully connected layer. At
cpu scale the source is Pong and the target H-flip, all arms that this pair has, and a budget of 1.2 million steps, 1.5
times what single columns needed for a return of 15 in trials on Pong; at paper scale all of its pairs. A point of a
learning curve is the mean of the episodes that ended in an epoch of 50,000 agent steps, and its area is counted from a
random player's return, -20.7. A source is learnt once for all arms, in the folder "sources" beside the unfinished jobs;
remove that folder after a change of the code.

Deviations: one setting for all arms and one run a seed in place of the best 3 of 25. Adam with generalised advantages
over 32 steps, divided by their deviation, in place of RMSProp with returns of 5 steps; 8 environments in step, whose
states are learnt from in mini-batches of 64 with proximal policy optimisation's clipped ratio, in place of 16 workers
that do not wait; the gradient's norm is of means over states in place of sums. Observations are scaled so that Pong's
background is 0, for all variants alike. Tried on Pong, one seed each and not recorded here, three settings without this
and with one update a rollout had not left -20 after 600,000 steps or more. With both and the clipped ratio two of two
passed 15 before 800,000; without the clipped ratio two of three had left -20, and on H-flip one was at -21 for 300,000
steps, when it was stopped. These had 0.01 for the entropy's weight, with which a second column did badly: its area on
H-flip was 0.22 of a single column's; with half the learning rate it was at -21 after 350,000 steps, and with alpha 0.1
as well at -18 after 550,000. With 0.03, now the weight of all arms and more than the paper's largest, 0.01, it was at
11 by then (one run each from the same source, on the pair that is measured; not recorded). The paper gives neither the
net, nor the noise, nor the zoom's offset, nor what the variants' paddles and ball look like, nor the return that its
areas are counted from: it may be another than ours, on which transfer depends. The source's column and baseline 1 on it
are the same training.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from statistics import fmean
from typing import TYPE_CHECKING, Any, Literal

from benchmarks.harness.experiment import Context, Experiment, Row, Run
from benchmarks.progressive._transfer_agents import AgentSettings, arms_with_pairs, available
from benchmarks.progressive._transfer_cells import SOURCES, TARGETS, Pair, cells

if TYPE_CHECKING:
    from matplotlib.figure import Figure
    from torch import nn

VARIANT = {"base": "pong", "hflip": "h-flip", "vflip": "v-flip", "hvflip": "hv-flip"}
"""What pong_variants.py calls the variants of soup_cells.py; the others have the same name in both."""
GOAL = 15.0
"""Return from which on Pong counts as learnt."""
ORDER = (("progressive2", "baseline1"), ("progressive2", "baseline2"))
"""Expected order of mean transfer, the better one first."""


@dataclass(frozen=True)
class Settings(AgentSettings):
    """Variants of Pong."""

    data: Literal["pong"] = "pong"
    """The game."""
    targets: tuple[str, ...] = ("hflip",)
    """Variants to learn as targets: base, black, hflip, hvflip, noisy, vflip, white, zoom."""
    sources: tuple[str, ...] = ("base",)
    """Variants to learn before: base, noisy, hflip; noisy and hflip together for three columns, too."""
    noise: float = 20.0
    """Standard deviation of the frozen noise image, in grey levels."""
    steps: int = 1_200_000
    """Agent steps of each column, all environments together."""
    epoch_steps: int = 50_000
    """Agent steps of an epoch, a point of the learning curve; episodes are cut off at its end."""


def measure(settings: Settings, arm: str, seed: int, context: Context) -> dict[str, Any]:
    """Learning curve, its area, the final return and, for two columns and more, AFS of every pair."""
    from avl_plugins.rl import ATARI_SCORES
    from benchmarks.envs.pong_variants import PongEnv
    from benchmarks.progressive._transfer_agents import Transfer

    sources = available(SOURCES, settings.sources)
    transfer = Transfer(
        settings,
        tasks={
            name: PongEnv(
                variant=VARIANT.get(name, name),
                noise_std=settings.noise,
                max_frames=settings.max_frames,
                threads=context.threads,
            )
            for name in TARGETS
        },
        floors=dict.fromkeys(TARGETS, ATARI_SCORES["pong"].random),
        references=dict.fromkeys(TARGETS, ATARI_SCORES["pong"]),
        body=lambda: column(settings.units),
        sources=sources,
        seed=seed,
        context=context,
    )
    return transfer.measure(arm, sources[arm])


def column(units: int) -> nn.Sequential:
    """Make a column without its output layer; what it sees has Pong's background at 0 and the ball at 3.7."""
    from benchmarks.envs.pong_variants import BACKGROUND, CONTRAST
    from benchmarks.training.models import Standardise, strided_body

    body = strided_body((4, 84, 84), [(12, (8, 8), 4), (12, (4, 4), 2)], units)
    return body.insert(0, Standardise(BACKGROUND / 255, CONTRAST / 255))


def final_return(run: Run) -> float:
    """Mean over pairs of the return in the evaluation at the end."""
    return fmean(cell["final"] for _, cell in cells(run))


def source_return(run: Run) -> float:
    """Mean over sources of the return in the evaluation at the end of their own training."""
    return fmean(cell["final"] for cell in run.measurements["sources"].values())


def millions_to_goal(run: Run) -> float:
    """Mean over pairs of the agent steps, in millions, to a learning curve's first point at the goal; nan without."""
    return fmean(
        next((x / 1e6 for x, y in zip(cell["steps"], cell["returns"], strict=True) if y >= GOAL), float("nan"))
        for _, cell in cells(run)
    )


def mean_share(run: Run, depth: int) -> float:
    """Mean over pairs of the share of old features (AFS) at a depth."""
    return fmean(sum(cell["afs"][depth][:-1]) for _, cell in cells(run))


def rows(runs: Sequence[Run]) -> list[Row]:
    """What a single column learns, transfer beside Table 1 and Fig. 4a, and which features are reused."""
    from benchmarks.harness.papers import paper
    from benchmarks.progressive._transfer_rows import matrix_rows, order_rows, sensitivity_rows, table1_rows
    from benchmarks.report.table import mean_row

    numbers = paper("progressive")
    learnt = sorted({target for run in runs if run.arm == "baseline1" for (_, target), _ in cells(run)})
    printed = numbers["soup"]["curves"]["base_hflip"]["baseline1"] if learnt == ["hflip"] else {}
    to_goal = printed.get("passes_15")
    has = [arm for arm in SOURCES if arm in {run.arm for run in runs} or arm != "progressive3"]
    read = {source for run in runs for (source, _), _ in cells(run)}
    table = [
        mean_row(
            runs,
            "baseline1",
            "final mean return",
            value=final_return,
            paper=printed.get("end"),
            target=(">=", GOAL),
            note=f"a single column on {', '.join(learnt)}" if learnt else "",
        ),
        mean_row(
            runs,
            "baseline1",
            "million agent steps to a mean return of 15",
            value=millions_to_goal,
            paper=None if to_goal is None else to_goal / 1e6,
            note="of an epoch's episodes; nan: not reached in some run",
        ),
        *table1_rows(runs, {arm: own for arm, own in numbers["table1"]["soup"].items() if arm in has}),
        *order_rows(runs, ORDER),
        *matrix_rows(runs, {arm: [s for s in SOURCES[arm] if "+".join(s) in read] for arm in has}),
    ]
    if any(run.arm == "progressive2" for run in runs):
        table += [
            mean_row(runs, "progressive2", "final mean return, source", value=source_return),
            *(
                mean_row(
                    runs,
                    "progressive2",
                    f"share of old features (AFS), {name}",
                    value=partial(mean_share, depth=depth),
                    note="Fig. 5 has no numbers; the paper says that H-flip reuses Pong's convolutions more than fc",
                )
                for depth, name in enumerate(("conv 1", "conv 2", "fc"))
            ),
        ]
    return table + sensitivity_rows(runs, perturbation=False)


def figure(runs: Sequence[Run]) -> Figure:
    """Fig. 4's matrix beside ours, learning curves, Fig. 5's sensitivities and Fig. 7."""
    from benchmarks.progressive._transfer_figure import CURVES, MAPPED, Look, soup_figure

    measured: set[Pair] = {pair for run in runs for pair, _ in cells(run)}

    def shown(every: Sequence[Pair]) -> list[Pair]:
        return [pair for pair in every if pair in measured] or [("base", "hflip")]

    look = Look(
        x="steps",
        y="returns",
        x_label="agent steps on the target",
        y_label="return while learning",
        y_range=(-21.5, 21.5),
        curves=shown(CURVES),
        mapped=shown(MAPPED),
        perturbation=False,
    )
    return soup_figure(runs, look)


EXPERIMENT = Experiment(
    name="progressive-pong-soup",
    title="Progressive Networks, Pong Soup: transfer between eight variants of Pong",
    data="pong",
    arms=partial(arms_with_pairs, SOURCES),
    scales={
        "smoke": Settings(
            steps=80, epoch_steps=40, units=8, num_envs=1, rollout=10, eval_episodes=1, analysis=8, max_frames=80
        ),
        "cpu": Settings(),
        "paper": Settings(
            targets=TARGETS, sources=("base", "noisy", "hflip"), steps=40_000_000, epoch_steps=250_000, units=256
        ),
    },
    minutes={"smoke": 0.2, "cpu": 130, "paper": 60_000},
    measure=measure,
    rows=rows,
    figure=figure,
    extras=("rl",),
)
