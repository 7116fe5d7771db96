"""Transfer between games: columns learnt in turn, nets finetuned, and the areas under their learning curves.

What has been learnt is a *sequence* of tasks, a column each. Baseline 1 is a sequence of the target alone, baseline 4
of "random" and the target, progressive networks of their sources and the target; they all start from what is before
their last task. Such beginnings are needed by several arms: where the job has a checkpoint they are kept in files
in the folder "sources" beside it, and learnt once. Baselines 2 and 3 finetune the net of a source.
"""

from __future__ import annotations

import hashlib
import io
import json
from collections.abc import Callable, Mapping, Sequence
from contextlib import nullcontext
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from benchmarks.harness.experiment import Context, differing, plain_settings
from benchmarks.harness.files import remove_events, write_atomically
from benchmarks.harness.lock import turn
from benchmarks.harness.unfinished import read_found, readable

if TYPE_CHECKING:
    from torch import nn

Names = tuple[str, ...]
"""Of tasks in the order in which they are learnt, a column each."""
RANDOM = "random"
"""In place of a task's name: a column that learns nothing."""
COLUMN_SEED = 10_000
"""Added to the seed for each column before: a second column must not start as the first one did."""
CHOICES = ("sources", "targets")
"""Settings that no training depends on."""
FINETUNED = ("baseline2", "baseline3")
"""The arms that have no new column: the output layer of a source's net is finetuned, or all of it."""


@dataclass(frozen=True)
class AgentSettings:
    """The agent, its budget, and what is measured of it."""

    steps: int = 3_000_000
    """Agent steps of each column, all environments together."""
    epoch_steps: int = 100_000
    """Agent steps of an epoch, a point of the learning curve; episodes are cut off at its end."""
    units: int = 128
    """Units of a column's fully connected layer."""
    reduction: float = 1.0
    """The adapter's projection is this many times narrower than the layer it reads."""
    alpha_init: float = 1.0
    """First value of the adapter's scalars alpha."""
    num_envs: int = 8
    """Environments that are stepped together."""
    rollout: int = 32
    """Steps of each before they are learnt from."""
    minibatches: int = 4
    """Updates for a rollout, each with another share of its states, drawn at random."""
    optimizer: Literal["adam", "rmsprop"] = "adam"
    """Optimizer: adam (eps 1e-5), or rmsprop (decay 0.99)."""
    lr: float = 5e-4
    """Learning rate."""
    gae_lambda: float = 0.95
    """Of the advantages; 1 for n-step returns."""
    normalise_advantages: bool = True
    """Whether advantages are divided by their deviation in a mini-batch, after subtracting their mean."""
    clip_ratio: float = 0.1
    """How far the policy's probability of an action may be from that with which it was taken, relatively; 0: any."""
    entropy: float = 0.03
    """Weight of the policy's entropy, beside advantages that are divided by their deviation."""
    grad_norm: float = 0.5
    """Largest norm of a gradient."""
    gamma: float = 0.99
    """Discount."""
    eval_episodes: int = 10
    """Episodes of the evaluation at the end."""
    analysis: int = 500
    """States that the sensitivities are measured on, of the last ones in training."""
    max_frames: int = 108_000
    """An episode is cut off after so many frames, four an agent step."""


@dataclass(frozen=True)
class Learnt:
    """What a sequence has left: the network's state, and the cell of its last task."""

    state: dict[str, Any] = field(repr=False)
    cell: dict[str, Any]


def pairs(sources: Sequence[Names], targets: Sequence[str]) -> list[tuple[Names, str]]:
    """Sources and targets of an arm: each target after each source that does not have it."""
    return [(source, target) for source in sources for target in targets if target not in source]


def available(sources: Mapping[str, Sequence[Names]], tasks: Sequence[str]) -> dict[str, tuple[Names, ...]]:
    """Return the sources of each arm that consist of these tasks and random columns; arms without any are left out."""
    found = {arm: tuple(s for s in own if set(s) <= {*tasks, RANDOM}) for arm, own in sources.items()}
    return {arm: own for arm, own in found.items() if own}


def arms_with_pairs(sources: Mapping[str, Sequence[Names]], settings: Any) -> list[str]:
    """Return the arms that have a pair among the settings' targets and sources."""
    return [arm for arm, own in available(sources, settings.sources).items() if pairs(own, settings.targets)]


def curve_to_the_end(curve: Sequence[tuple[int, float]], steps: int) -> list[tuple[int, float]]:
    """Return a curve of epochs' means from 0 to `steps`, the first one's held back to 0, the last one's to the end.

    Raises:
        ValueError: If no episode has ended.
    """
    if not curve:
        raise ValueError("epoch_steps: no episode has ended in any epoch; make epochs many times as long as episodes")
    first, last = (0, curve[0][1]), (max(steps, curve[-1][0]), curve[-1][1])
    return [first, *curve, *([last] if last[0] > curve[-1][0] else [])]


def area_above(curve: Sequence[tuple[int, float]], steps: int, floor: float) -> float:
    """Mean height above the floor of a learning curve, over the whole budget."""
    from avl_plugins.metrics.learning_curve import learning_curve_area

    points = curve_to_the_end(curve, steps)
    return learning_curve_area(points, floor=floor) / points[-1][0]


class Transfer:
    """The trainings of one job.

    Args:
        settings: An experiment's, `AgentSettings` among them.
        tasks: Environment factories by name, sources and targets.
        floors: By name, the return from which the area is counted.
        references: By the tasks' names what normalised scores are logged by: a random player's return, and a
            person's.
        body: Makes a column without its output layer.
        sources: Of all arms of the experiment: their beginnings are kept.
        seed: The job's.
        context: The job's.
    """

    def __init__(
        self,
        settings: Any,
        *,
        tasks: Mapping[str, Any],
        floors: Mapping[str, float],
        references: Mapping[str, tuple[float, float]] | None = None,
        body: Callable[[], nn.Sequential],
        sources: Mapping[str, Sequence[Names]],
        seed: int,
        context: Context,
    ) -> None:
        self.settings, self.tasks, self.floors, self.body = settings, tasks, floors, body
        self.references = references
        self.seed, self.context = seed, context
        every = [source for own in sources.values() for source in own]
        self.kept = {source[:k] for source in every for k in range(1, len(source) + 1)}
        self.memory: dict[Names, Learnt] = {}
        self.done, self.total = 0, 1

    def measure(self, arm: str, sources: Sequence[Names]) -> dict[str, Any]:
        """Learn each target after each source; the cells by source and target, and those of what was learnt before.

        With `context.resume` finished cells are read from the checkpoint, and the one that was begun goes on.
        """
        from benchmarks.progressive._transfer_cells import source_name

        checkpoint = self.context.checkpoint
        found: dict[str, dict[str, Any]] = {}
        if checkpoint is not None:
            if self.context.resume:
                found = read_found(checkpoint)
            else:
                for old in checkpoint.parent.glob(f"{checkpoint.name}.*"):
                    old.unlink()
                write_atomically(checkpoint, b"{}")
        cells = pairs(sources, self.settings.targets)
        sequences = {(*source[:k],) for source, _ in cells for k in range(1, len(source) + 1)} - {(RANDOM,)}
        self.total = len(cells) + len(sequences)
        for source, target in cells:
            name = source_name(source)
            if target not in found.get(name, {}):
                cell = self.cell(arm, source, target)
                found.setdefault(name, {})[target] = cell
                if checkpoint is not None:
                    write_atomically(checkpoint, json.dumps(found).encode())
            else:
                self.done += 1
            self.memory = {own: learnt for own, learnt in self.memory.items() if own in self.kept}
        before = {source_name(own): self.learnt(own).cell for own in sorted(sequences, key=lambda own: (len(own), own))}
        return {"cells": found, "sources": before}

    def cell(self, arm: str, source: Names, target: str) -> dict[str, Any]:
        """Learn a target; the cell."""
        if arm in FINETUNED:
            return self.finetuned(source, target, whole=arm == "baseline3")
        return self.learnt((*source, target)).cell

    def learnt(self, sequence: Names) -> Learnt:
        """Learn a sequence, or find it in memory or in its file.

        Raises:
            ValueError: If the file is of other settings.
        """
        if sequence not in self.memory:
            file = self.file(sequence) if sequence in self.kept and sequence != (RANDOM,) else None
            # Without it, two jobs that run side by side would each learn the source.
            waiting = partial(self._say, f"waits for {'+'.join(sequence)}")
            with nullcontext() if file is None else turn(file.with_suffix(".lock"), waiting):
                found = None if file is None else self.read(file, sequence)
                if found is not None:
                    self.done += 1
                else:
                    found = self._learn(sequence)
                    if file is not None:
                        self._write(file, sequence, found)
            self.memory[sequence] = found
        return self.memory[sequence]

    def network(self, state: Mapping[str, Any] | None = None) -> Any:
        """Make the network, with the columns of a state."""
        from avl_plugins import ProgressiveNetwork

        settings = self.settings
        net = ProgressiveNetwork(self.body(), reduction=settings.reduction, alpha_init=settings.alpha_init)
        if state is not None:
            net.load_state_dict(state)
        return net

    def finetuned(self, source: Names, target: str, *, whole: bool) -> dict[str, Any]:
        """Train the net of a source on a target, all of it or its output layer; the cell."""
        import torch

        net = self.network(self.learnt(source).state).to_single_task(len(source) - 1)
        net.requires_grad_(whole)
        net.columns[-1].head.requires_grad_(True)
        number = self.seed + COLUMN_SEED * len(source)
        torch.manual_seed(number)
        name = f"{'+'.join(source)}-{target}-{'all' if whole else 'head'}"
        return self._train(net, (target,), number, name)[1]

    def file(self, sequence: Names) -> Path | None:
        """Where a sequence is kept; None where the job has no checkpoint."""
        if self.context.checkpoint is None:
            return None
        digest = hashlib.sha256(json.dumps(self._made_with(sequence), sort_keys=True).encode()).hexdigest()[:8]
        return self.context.checkpoint.parent / "sources" / f"{'+'.join(sequence)}-seed{self.seed}-{digest}.pt"

    def read(self, file: Path, sequence: Names) -> Learnt | None:
        """Read a sequence's file, None if there is none; a ValueError says that it is of other settings, or broken."""
        import torch

        if not file.exists():
            return None
        try:
            content = torch.load(file, map_location="cpu", weights_only=True)
            made_with = content["made_with"]
        except Exception as error:
            raise ValueError(f"{file} does not hold a trained source ({error}); remove it") from error
        if other := differing(made_with, self._made_with(sequence)):
            raise ValueError(f"{file} was learnt with other settings ({', '.join(other)}); remove it")
        return Learnt(content["state"], content["cell"])

    def _write(self, file: Path, sequence: Names, found: Learnt) -> None:
        import torch

        content = io.BytesIO()
        torch.save({"made_with": self._made_with(sequence), "state": found.state, "cell": found.cell}, content)
        write_atomically(file, content.getvalue())

    def _made_with(self, sequence: Names) -> dict[str, Any]:
        """What it depends on: all settings but those that choose what is run."""
        settings = {name: value for name, value in plain_settings(self.settings).items() if name not in CHOICES}
        return {**settings, "seed": self.seed, "sequence": list(sequence)}

    def _learn(self, sequence: Names) -> Learnt:
        import torch

        from avl_plugins.rl import rl_benchmark

        *before, _ = sequence
        earlier = self.learnt(tuple(before)).state if before else None
        number = self.seed + COLUMN_SEED * len(before)
        torch.manual_seed(number)
        net = self.network(earlier)
        if sequence[-1] == RANDOM:
            name = next(iter(self.tasks))
            (visit,) = rl_benchmark({name: self.tasks[name]}, steps=1).train_stream
            net.add_task(len(before), visit.actions + 1)
            return Learnt(_state(net), {})
        net, cell = self._train(net, sequence, number, "+".join(sequence))
        return Learnt(_state(net), cell)

    def _train(self, model: nn.Module, sequence: Names, seed: int, name: str) -> tuple[Any, dict[str, Any]]:
        """Train on the last task of a sequence; the model, and the cell."""
        from avl_plugins import ProgressiveNetwork, ProgressivePlugin, load_checkpoint
        from avl_plugins.rl import rl_benchmark
        from benchmarks.training.agents import agent, learning_curves, make_evaluator, returns_after
        from benchmarks.training.supervised import job_plugins

        settings, target = self.settings, sequence[-1]
        begun = None
        if self.context.checkpoint is not None:
            begun = self.context.checkpoint.with_name(f"{self.context.checkpoint.name}.{name}")
        resume = begun is not None and begun.exists()
        context = self._context(name, begun, resume)
        progressive = isinstance(model, ProgressiveNetwork)
        strategy = agent(
            settings,
            model.to(context.device),
            optimizer=settings.optimizer,
            adam_eps=1e-5,
            minibatches=settings.minibatches,
            gae_lambda=settings.gae_lambda,
            normalise_advantages=settings.normalise_advantages,
            clip_ratio=settings.clip_ratio or None,
            epoch_steps=settings.epoch_steps,
            eval_episodes=settings.eval_episodes,
            eval_envs=settings.eval_episodes,
            fisher_states=settings.analysis,
            channels_last=True,
            acting_threads=1,
            seed=seed,
            device=context.device,
            plugins=[*([ProgressivePlugin()] if progressive else []), *job_plugins(context, 1)],
            evaluator=make_evaluator(context, self.references),
        )
        # The tasks before are in the benchmark for the task labels; a random column has none of its own.
        tasks = {task: self.tasks[target if task == RANDOM else task] for task in sequence}
        benchmark = rl_benchmark(tasks, steps=settings.steps)
        label = len(sequence) - 1
        if begun is not None and resume:
            with readable(begun):
                load_checkpoint(strategy, begun)
        strategy.train(benchmark.train_stream[label])
        strategy.eval(benchmark.test_stream[label])
        curve = learning_curves(strategy).get(label, [])
        cell: dict[str, Any] = {
            "steps": [x for x, _ in curve],
            "returns": [y for _, y in curve],
            "area": round(area_above(curve, settings.steps, self.floors[target]), 5),
            "final": round(returns_after(strategy)[label][-1], 3),
        }
        if progressive and label:
            cell |= self._sensitivity(strategy, sequence, context)
        if begun is not None:
            begun.unlink(missing_ok=True)
        self.done += 1
        return strategy.model, cell

    def _sensitivity(self, strategy: Any, sequence: Names, context: Context) -> dict[str, Any]:
        """AFS of the policy by layer and column, and by map of the convolutions, on states of the end of training."""
        from torch.utils.tensorboard import SummaryWriter

        from avl_plugins import average_fisher_sensitivity, sensitivity_figure

        label = len(sequence) - 1
        batches = strategy.fisher_batches()
        afs = average_fisher_sensitivity(strategy.model, batches, label, logits=lambda outputs: outputs[:, :-1])
        depths, columns = afs.shape
        if context.logdir is not None:
            names = [*(f"conv {k + 1}" for k in range(depths - 1)), "fc"]
            with SummaryWriter(str(context.logdir)) as writer:
                writer.add_figure("AFS", sensitivity_figure(afs, layers=names, columns=list(sequence)))
        return {
            "afs": [[round(v, 4) for v in layer] for layer in afs.layers.tolist()],
            "afs_maps": [
                [[round(v, 4) for v in afs.maps[depth, column].tolist()] for column in range(columns)]
                for depth in range(depths - 1)
            ],
        }

    def _context(self, name: str, begun: Path | None, resume: bool) -> Context:
        """Return the context of one training: its checkpoint, its own TensorBoard folder, its part of the job's bar."""
        logdir = None if self.context.logdir is None else self.context.logdir / name
        if logdir is not None and not resume:
            remove_events(logdir)

        def progress(done: int, total: int, text: str = "") -> None:
            part = 1000 * (self.done + done / max(1, total))
            self.context.progress(round(min(part, 1000 * self.total - 1)), 1000 * self.total, f"{name}, {text}")

        return replace(self.context, checkpoint=begun, resume=resume, logdir=logdir, progress=progress)

    def _say(self, text: str) -> None:
        self.context.progress(1000 * self.done, 1000 * self.total, text)


def _state(net: nn.Module) -> dict[str, Any]:
    state = net.state_dict()
    return {name: value if name.endswith("_extra_state") else value.detach().cpu() for name, value in state.items()}
