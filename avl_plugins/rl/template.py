"""Avalanche's template for reinforcement learning: what the strategies that act in environments share."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from math import ceil
from typing import Any

import numpy as np
import torch
from avalanche.core import BasePlugin
from avalanche.logging import InteractiveLogger
from avalanche.models import MultiTaskModule
from avalanche.training.plugins import EvaluationPlugin
from avalanche.training.templates import SupervisedTemplate
from avalanche.training.utils import trigger_plugins
from torch import Tensor, nn
from torch.nn.utils import clip_grad_norm_
from torch.optim import Optimizer

from avl_plugins.checkpoint.resume import CheckpointEvery, Resumable
from avl_plugins.metrics.rl import return_metrics
from avl_plugins.rl.environments import Environments, Episode
from avl_plugins.rl.loaders import Evaluation, Visit
from avl_plugins.rl.scratch import Scratch
from avl_plugins.rl.stream import RLExperience

__all__ = ["RLTemplate"]


def _default_evaluator() -> EvaluationPlugin:
    return EvaluationPlugin(return_metrics(), loggers=[InteractiveLogger()])


class RLTemplate(Resumable, SupervisedTemplate):
    """A strategy that acts in the environments of `RLExperience`s; see `ActorCritic` and `DQN`.

    Hooks, plugins, evaluator, loggers and checkpoints are those of Avalanche's `SupervisedTemplate`. An *iteration* is
    an update of the network, and an *epoch* is `epoch_steps` agent steps: it begins with new episodes in all
    environments, whose seed depends on `seed`, the number of the experience and that of the epoch only. A run that is
    resumed from a checkpoint at an epoch's end (`CheckpointEvery(path)`) therefore equals one that was not interrupted,
    bit for bit on the CPU, with any environment whose seeded reset determines it. There are no checkpoints within an
    epoch. Episodes are cut off at its end, which costs about half an episode an environment: make epochs many times as
    long as episodes.

    `mb_x` is in the same memory in every iteration: clone it to keep it.

    In evaluation `eval_episodes` episodes are played in each experience, an equal number in each environment, the same
    ones (same seeds) every time.

    Args:
        model: Maps observations (B, ...) to (B, outputs), `head_outputs` of them; a `MultiTaskModule` is given the task
            label, too. uint8 observations reach it as float32, divided by 255; others as float32.
        optimizer: Its optimizer.
        num_envs: Environments that are stepped together.
        epoch_steps: Agent steps of an epoch, all environments together; None: a visit is one epoch.
        gamma: Discount of an agent step.
        reward_clip: Rewards are clipped to plus and minus this for learning; None: they are not. Returns are reported
            as the environment gives them.
        max_grad_norm: Gradients are scaled down to this norm; None: they are not.
        eval_episodes: Episodes of an evaluation in each experience.
        eval_envs: Environments that are stepped together in evaluation.
        channels_last: Mini-batches of images reach the network in `torch.channels_last`: gradients of convolutions with
            few maps cost half on a CPU. They differ in their last bits. A network must `reshape` then, not `view`.
        acting_threads: Threads of torch between updates, where the agent acts; None: as many as in updates. 1 leaves
            the cores to environments with threads of their own (`AtariEnv`): torch's wait busily for their next work.
        seed: Of the environments. None: `torch.initial_seed()`.
        plugins: Of Avalanche or ours.
        **kwargs: Other arguments of `SupervisedTemplate` (device, evaluator, eval_every, ...). It measures returns by
            default.

    Attributes:
        steps: Agent steps taken in training so far.
        steps_of: The same by task label, 0 for one that has not been met.
        label: Task label in use: the experience's, or the one that a plugin infers (`TaskRecognitionPlugin`).
        held: Agent steps since it was taken up, in this visit.
        least_held: With fewer, `EWCPlugin` leaves the task alone as it ends. 0, unless a plugin sets it: labels that
            are given are right however short the visit is.
        episodes: Those that have ended in this epoch's training so far, or in the evaluation of this experience.
        updates: Iterations so far.

    Raises:
        ValueError: If an argument is out of range; in `train()`, if `CheckpointEvery` is to save after iterations, or
            the loss is not finite.
        TypeError: In `train()` and `eval()`, if an experience is no `RLExperience`.
        EnvironmentFailedError: In `train()` and `eval()`, if an environment crashes or returns something that is not
            finite. What has been learnt until then is kept, and the strategy can be trained and saved as before.
    """

    def __init__(
        self,
        *,
        model: nn.Module,
        optimizer: Optimizer,
        num_envs: int = 16,
        epoch_steps: int | None = None,
        gamma: float = 0.99,
        reward_clip: float | None = 1.0,
        max_grad_norm: float | None = None,
        eval_episodes: int = 10,
        eval_envs: int = 10,
        channels_last: bool = False,
        acting_threads: int | None = None,
        seed: int | None = None,
        plugins: Sequence[BasePlugin] | None = None,
        evaluator: Any = _default_evaluator,
        **kwargs: Any,
    ) -> None:
        for name, value in (("num_envs", num_envs), ("eval_episodes", eval_episodes), ("eval_envs", eval_envs)):
            if value < 1:
                raise ValueError(f"{name}: expected at least 1, got {value}")
        if epoch_steps is not None and epoch_steps < num_envs:
            raise ValueError(f"epoch_steps: expected at least a step of the {num_envs} environments, got {epoch_steps}")
        if acting_threads is not None and acting_threads < 1:
            raise ValueError(f"acting_threads: expected at least 1, or None for as many as else, got {acting_threads}")
        if seed is not None and seed < 0:
            raise ValueError(f"seed: expected at least 0, got {seed}")
        if not 0 <= gamma <= 1:
            raise ValueError(f"gamma: expected a number from 0 to 1, got {gamma}")
        for name, bound in (("reward_clip", reward_clip), ("max_grad_norm", max_grad_norm)):
            if bound is not None and not bound > 0:
                raise ValueError(f"{name}: expected a positive number, or None for no bound, got {bound}")
        self.num_envs, self.epoch_steps = num_envs, epoch_steps
        self.gamma, self.reward_clip, self.max_grad_norm = gamma, reward_clip, max_grad_norm
        self.eval_episodes, self.eval_envs = eval_episodes, eval_envs
        self.channels_last, self.acting_threads = channels_last, acting_threads
        self._scratch = Scratch()
        self.seed = torch.initial_seed() if seed is None else seed
        self.steps, self.updates = 0, 0
        self.steps_of: Counter[int] = Counter()
        self.episodes: list[Episode] = []
        self.label, self.held, self.least_held = 0, 0, 0
        self._requested: int | None = None
        self.environments: Environments | None = None
        self.experience: Any
        self.dataloader: Any
        self.mbatch: Any
        super().__init__(model=model, optimizer=optimizer, plugins=plugins, evaluator=evaluator, **kwargs)

    # What a strategy defines.

    def head_outputs(self, experience: RLExperience) -> int:
        """Return how many outputs the network has for a task."""
        raise NotImplementedError

    def rollouts(self, environments: Environments, steps: int) -> Iterator[list[Tensor]]:
        """Act for so many agent steps, and yield a mini-batch for each update: [x, ..., task labels (B,)]."""
        raise NotImplementedError

    def updates_in(self, steps: int) -> int:
        """Return how many updates there are in so many agent steps."""
        raise NotImplementedError

    def training_loss(self) -> Tensor:
        """Return the loss of the mini-batch, given `mb_output`."""
        raise NotImplementedError

    def choose(self, outputs: Tensor, generator: torch.Generator) -> Tensor:
        """Return the actions (B,) of an evaluation."""
        raise NotImplementedError

    def fisher_batches(self) -> Iterable[tuple[Tensor, Tensor, Tensor]]:
        """Return batches (states, zeros, task labels) of the task's own states, for `EWCPlugin`."""
        raise NotImplementedError

    def has_states(self) -> bool:
        """Return whether there are states of the task in use."""
        raise NotImplementedError

    # What they share.

    def outputs(self, x: Tensor, network: nn.Module | None = None) -> Tensor:
        """Return the network's outputs, or those of a copy of it, for observations as the environment gives them."""
        return self._called(network or self.model, self._as_input(x.to(self.device)))

    def clipped(self, rewards: Tensor) -> Tensor:
        """Return the rewards for learning."""
        return rewards if self.reward_clip is None else rewards.clamp(-self.reward_clip, self.reward_clip)

    def measurable(self) -> bool:
        """Return whether the task in use has states, and has been in use for long enough; `EWCPlugin` asks."""
        return self.held >= self.least_held and self.has_states()

    def count(self, steps: int) -> None:
        """Count agent steps."""
        self.steps += steps
        self.held += steps
        self.steps_of[self.label] += steps

    def request_label(self, label: int) -> None:
        """Go on under another task label, from the next safe moment on; for plugins that recognise tasks."""
        self._requested = label

    def notice(self, observations: Tensor) -> None:
        """Show plugins with a method `observed(strategy, observations)` what the environments have returned."""
        trigger_plugins(self, "observed", observations=observations)

    def switch_if_requested(self) -> None:
        """Go on under the label that has been requested.

        Plugins with a method `switch_task(strategy)` are told before, `EWCPlugin` for example, which protects the task
        that ends if it is `measurable`; the network is given what it has of its own for the new one.
        """
        label, self._requested = self._requested, None
        if label is None or label == self.label:
            return
        if self.is_training:
            trigger_plugins(self, "switch_task")
        self.label, self.held = label, 0
        if self.is_training:
            self.model = self.model_adaptation()
            self.make_optimizer()

    def model_adaptation(self, model: nn.Module | None = None) -> nn.Module:
        """Adapt the network to the experience, under the label in use."""
        whole = self.experience
        self.experience = whole.relabelled(self.label)
        try:
            return super().model_adaptation(model)
        finally:
            self.experience = whole

    def train(self, experiences: Any, eval_streams: Any = None, **kwargs: Any) -> Any:
        """Train on one visit or several; see `Resumable.train` for what happens after a load.

        An interrupted training, whatever the reason, leaves the strategy between experiences: with what it has learnt.
        """
        for plugin in self.plugins:
            if isinstance(plugin, CheckpointEvery) and plugin.iterations is not None:
                raise ValueError(
                    "CheckpointEvery: iterations: reinforcement learning is resumed at the beginning of an epoch; pass "
                    "iterations=None, and give the strategy a shorter epoch_steps"
                )
        try:
            return super().train(experiences, eval_streams, **kwargs)
        except BaseException:
            self.is_training = False
            self._train_cleanup()
            raise
        finally:
            self._close()

    def eval(self, experiences: Any, **kwargs: Any) -> Any:
        """Play episodes in each experience; an interrupted evaluation leaves the strategy between experiences, too."""
        training = (self.label, self.held, self._requested, self.environments, self.episodes)
        self.environments = None
        try:
            return super().eval(experiences, **kwargs)
        except BaseException:
            self._eval_cleanup()
            raise
        finally:
            self._close()
            self.label, self.held, self._requested, self.environments, self.episodes = training

    def forward(self) -> Tensor:
        """Return the network's outputs for the mini-batch, which is of one task."""
        return self._called(self.model, self.mb_x)

    def criterion(self) -> Tensor:
        """Return the loss; 0 in evaluation."""
        if not self.is_training:
            return torch.zeros((), device=self.device)
        loss = self.training_loss()
        if not loss.isfinite():
            raise ValueError(
                f"{self.experience.name}: the loss is {loss.item():g} at update {self.updates}: lower the learning "
                "rate, or set max_grad_norm and reward_clip"
            )
        return loss

    def optimizer_step(self) -> None:
        """Scale gradients down to `max_grad_norm` and update."""
        if self.max_grad_norm is not None:
            clip_grad_norm_(self.model.parameters(), self.max_grad_norm)
        super().optimizer_step()
        self.updates += 1

    def train_dataset_adaptation(self, **kwargs: Any) -> None:
        """There is no data set."""

    def eval_dataset_adaptation(self, **kwargs: Any) -> None:
        """There is no data set."""

    def make_train_dataloader(self, **kwargs: Any) -> None:
        """Have the experience's environments give the mini-batches."""
        self.dataloader = Visit(self)

    def make_eval_dataloader(self, **kwargs: Any) -> None:
        """Have the experience's environments give the observations."""
        self.dataloader = Evaluation(self)

    def state_dict(self) -> dict[str, Any]:
        """Return what a resumed run needs beside the network."""
        episodes = [(e.total, e.length, e.env) for e in self.episodes]
        own = {"steps": self.steps, "updates": self.updates, "steps_of": dict(self.steps_of), "seed": self.seed}
        return own | {"episodes": episodes, "label": self.label, "held": self.held, "requested": self._requested}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Take it."""
        self.steps, self.updates, self.seed = state["steps"], state["updates"], state["seed"]
        self.steps_of = Counter(state["steps_of"])
        self.episodes = [Episode(*episode) for episode in state["episodes"]]
        self.label, self.held, self._requested = state["label"], state["held"], state["requested"]

    def visit_steps(self, epoch: int) -> int:
        """Return the agent steps of an epoch of the experience, rounded up to steps of all environments."""
        whole = self.experience.steps
        length = min(self.epoch_steps or whole, whole - epoch * (self.epoch_steps or whole))
        return ceil(length / self.num_envs) * self.num_envs

    def environment_seed(self, *numbers: int) -> int:
        """Return a seed for environments that depends on `seed` and the numbers."""
        return int(np.random.SeedSequence([self.seed, *numbers]).generate_state(1)[0]) % 2**30

    def _before_training_exp(self, **kwargs: Any) -> None:
        self._enter(self.experience)
        self.train_epochs = ceil(self.experience.steps / (self.epoch_steps or self.experience.steps))
        super()._before_training_exp(**kwargs)

    def _after_training_exp(self, **kwargs: Any) -> None:
        self._close()
        super()._after_training_exp(**kwargs)

    def _before_eval_exp(self, **kwargs: Any) -> None:
        self._enter(self.experience)
        super()._before_eval_exp(**kwargs)

    def _after_eval_exp(self, **kwargs: Any) -> None:
        super()._after_eval_exp(**kwargs)
        self._close()

    def _at_safe_point(self) -> None:
        progress: Any = self.progress
        if progress.unit != "epoch" or progress.iteration == 0:  # not within an epoch
            super()._at_safe_point()

    def _unpack_minibatch(self) -> None:
        x, *others = self.mbatch
        last = self.channels_last and self.is_training and x.ndim == 4
        form = torch.channels_last if last else torch.contiguous_format
        scaled = self._scratch("input", x.shape, torch.float32, self.device, form)
        # Bytes change their order in half the time that floats take.
        scaled.copy_(x.contiguous(memory_format=form) if x.dtype == torch.uint8 else x)
        if x.dtype == torch.uint8:
            scaled.div_(255)
        self.mbatch = [scaled, *(other.to(self.device) for other in others)]

    def _enter(self, experience: Any) -> None:
        if not isinstance(experience, RLExperience):
            raise TypeError(
                f"{type(self).__name__} acts in environments, and the experience is a {type(experience).__name__}; "
                "make the benchmark with rl_benchmark"
            )
        self.label, self.held, self._requested = experience.task_label, 0, None
        self.episodes = []
        experience.classes_in_this_experience = list(range(self.head_outputs(experience)))

    def _close(self) -> None:
        if self.environments is not None:
            self.environments.close()
        self.environments = None

    def _called(self, network: nn.Module, x: Tensor) -> Tensor:
        return network(x, self.label) if isinstance(network, MultiTaskModule) else network(x)

    @staticmethod
    def _as_input(x: Tensor) -> Tensor:
        converted = x.to(torch.float32)
        return converted.div_(255) if x.dtype == torch.uint8 else converted
