"""Double DQN with a replay buffer for each task, as an Avalanche strategy."""

from __future__ import annotations

import logging
from collections.abc import Iterable, Iterator, Mapping
from copy import deepcopy
from typing import Any, ClassVar

import torch
from torch import Tensor, nn
from torch.nn import functional
from torch.optim import Optimizer

from avl_plugins.rl.calls import as_input
from avl_plugins.rl.entries import Check, a_dict, or_none
from avl_plugins.rl.environments import Environments
from avl_plugins.rl.replay_buffer import ReplayBuffer
from avl_plugins.rl.stream import RLExperience
from avl_plugins.rl.template import RLTemplate
from avl_plugins.tasks.arguments import check_count, check_flag, check_number

__all__ = ["DQN"]

log = logging.getLogger(__name__)


class DQN(RLTemplate):
    r"""Double DQN (van Hasselt et al. 2016, arXiv:1509.06461) as the EWC paper has it (arXiv:1612.00796, app. 4.2).

    Each update is on a mini-batch from the replay buffer of the task, after `train_every` agent steps, with the loss

        huber(r + gamma Q'(s', argmax_a Q(s', a)) - Q(s, a)),

    Q' the target network, a copy of Q from at most `target_every` updates ago; what a new task adds to Q is copied when
    it is added. The gradient of the Huber loss is the temporal-difference error clipped to plus and minus 1. Each task
    has its own buffer and a separate epsilon schedule: actions are random with a probability that is 1 for the first
    `epsilon_wait` agent steps in it and then falls to `epsilon_end` over `epsilon_steps`. Defaults are the paper's; its
    optimizer is RMSProp, lr 2.5e-4 and at most 2.5e-3, decay 0.95, and its gradient norm at most 50. It has 50,000
    transitions a buffer in its table and ten times as many in its text.

    For EWC, give `EWCPlugin` a `likelihood`: "gaussian" takes Q for the mean of a normal distribution, "categorical"
    for the logits of a Boltzmann policy. The paper does not say which likelihood it took, so there is no default.

    In a visit that is too short for a buffer to reach `learning_starts` nothing is learnt; a warning in the log says so
    as it begins.

    Deviations: the mean over the mini-batch where the paper's code takes the sum; several environments in step
    where the paper has one.

    Args:
        model: (B, ...) -> (B, actions).
        optimizer: its optimizer.
        num_envs: environments that are stepped together.
        buffer_size: transitions of each task that are kept.
        stacked: states are stacks of frames, newest last, as `AtariEnv`'s are: the buffers keep each frame once, for a
            quarter of the memory with four (`ReplayBuffer`). The run is the same, bit for bit.
        batch_size: transitions of a mini-batch.
        train_every: agent steps for each update, a multiple of `num_envs`.
        learning_starts: transitions in a task's buffer before the first update on it.
        target_every: updates between copies of Q.
        epsilon_wait: agent steps in a task with random actions only.
        epsilon_steps: agent steps in which epsilon falls.
        epsilon_end: what it falls to; it is also that of evaluations.
        fisher_states: states that are drawn from the task's buffer for the Fisher: the paper's 100 mini-batches of 32.
        **kwargs: of `RLTemplate`: epoch_steps, gamma, max_grad_norm (50 here), ...

    Attributes:
        buffers: the replay buffers by task label.
        target: the target network.

    Raises:
        TypeError: an argument is of another kind, or positional.
        ValueError: an argument is out of range, or an `RLTemplate` says so.
    """

    outputs_are = "one for each action"
    state_entries: ClassVar[dict[str, Check]] = RLTemplate.state_entries | {
        "buffers": a_dict,
        "target": or_none(a_dict),
    }

    def __init__(
        self,
        *,
        model: nn.Module,
        optimizer: Optimizer,
        num_envs: int = 4,
        buffer_size: int = 50_000,
        stacked: bool = False,
        batch_size: int = 32,
        train_every: int = 4,
        learning_starts: int = 50_000,
        target_every: int = 7_500,
        epsilon_wait: int = 50_000,
        epsilon_steps: int = 1_000_000,
        epsilon_end: float = 0.01,
        fisher_states: int = 3200,
        max_grad_norm: float | None = 50.0,
        **kwargs: Any,
    ) -> None:
        check_count("num_envs", num_envs)
        check_count("train_every", train_every)
        if train_every % num_envs:
            raise ValueError(f"train_every must be a multiple of num_envs, {num_envs}, got {train_every}")
        check_count("buffer_size", buffer_size, low=2 * num_envs)
        check_count("learning_starts", learning_starts)
        room = buffer_size // num_envs * num_envs
        if not 2 * num_envs <= learning_starts <= room:
            raise ValueError(
                f"learning_starts must be from {2 * num_envs}, two steps of the environments, to {room}, what a buffer "
                f"with buffer_size={buffer_size} holds, got {learning_starts}"
            )
        for name, value in (
            ("batch_size", batch_size),
            ("target_every", target_every),
            ("epsilon_steps", epsilon_steps),
            ("fisher_states", fisher_states),
        ):
            check_count(name, value)
        check_count("epsilon_wait", epsilon_wait, low=0)
        check_number("epsilon_end", epsilon_end, low=0, high=1)
        check_flag("stacked", stacked)
        self.buffer_size, self.stacked, self.batch_size = buffer_size, stacked, batch_size
        self.train_every, self.learning_starts, self.target_every = train_every, learning_starts, target_every
        self.epsilon_wait, self.epsilon_steps, self.epsilon_end = epsilon_wait, epsilon_steps, epsilon_end
        self.fisher_states = fisher_states
        self.buffers: dict[int, ReplayBuffer] = {}
        self.target: nn.Module | None = None
        super().__init__(model=model, optimizer=optimizer, num_envs=num_envs, max_grad_norm=max_grad_norm, **kwargs)
        if self.epoch_steps is not None and self.epoch_steps < train_every:
            raise ValueError(
                f"epoch_steps must be at least train_every, {train_every}, as updates are counted anew in each epoch, "
                f"got {self.epoch_steps}"
            )

    @property
    def epsilon(self) -> float:
        """Probability of a random action in the task at present."""
        after = self.steps_of[self.label] - self.epsilon_wait
        return 1 - (1 - self.epsilon_end) * min(max(after / self.epsilon_steps, 0.0), 1.0)

    def head_outputs(self, experience: RLExperience) -> int:
        """One for each action."""
        return experience.actions

    def updates_in(self, steps: int) -> int:
        """One for each `train_every` steps, once the buffer holds enough."""
        missing = self.learning_starts - len(self.buffers.get(self.label, ()))
        return max(0, steps - max(0, missing)) // self.train_every

    def rollouts(self, environments: Environments, steps: int) -> Iterator[list[Tensor]]:
        """Yield [states, actions, targets, task labels], each (batch_size, ...)."""
        since = 0
        for buffer in self.buffers.values():  # new episodes have begun
            buffer.end()
        for _ in range(steps // self.num_envs):
            # Before a step, not after it: a task that begins has one at least, also where this is the visit's last.
            label = self.label
            self.switch_if_requested()
            if self.label != label and label in self.buffers:
                self.buffers[label].end()
            buffer = self._buffer()
            observations = environments.observations
            actions = self._act(observations)
            step = environments.step(actions)
            buffer.add(observations, actions, step, self.clipped(step.rewards))
            self.count(self.num_envs)
            self.notice(step.observations)
            since += self.num_envs
            if len(buffer) >= self.learning_starts and since >= self.train_every:
                since = 0
                yield self._minibatch(buffer)

    def _before_training_exp(self, **kwargs: Any) -> None:
        super()._before_training_exp(**kwargs)
        steps = sum(self.visit_steps(epoch) for epoch in range(self.train_epochs))
        if not self.updates_in(steps):
            log.warning(
                "%s: nothing will be learnt in this visit: its %d agent steps are too few for learning_starts=%d and "
                "train_every=%d",
                *(self.experience.name, steps, self.learning_starts, self.train_every),
            )

    def _buffer(self) -> ReplayBuffer:
        if self.label not in self.buffers:
            self.buffers[self.label] = self._new_buffer()
        return self.buffers[self.label]

    def _new_buffer(self) -> ReplayBuffer:
        return ReplayBuffer(self.buffer_size, self.num_envs, stacked=self.stacked)

    @torch.no_grad()
    def _act(self, observations: Tensor) -> Tensor:
        random = torch.rand(self.num_envs) < self.epsilon
        anything = torch.randint(self.experience.actions, (self.num_envs,))
        if random.all():
            return anything
        return torch.where(random, anything, self.outputs(observations).argmax(1).cpu())

    @torch.no_grad()
    def _minibatch(self, buffer: ReplayBuffer) -> list[Tensor]:
        if self.target is None or self.updates % self.target_every == 0:
            self.refresh_target()
        states, actions, rewards, following, terminated = buffer.sample(self.batch_size)
        best = self.outputs(following).argmax(1)
        values = self.outputs(following, self.target).gather(1, best[:, None]).squeeze(1).cpu()
        targets = rewards + self.gamma * (~terminated).float() * values
        return [states, actions, targets, torch.full((len(states),), self.label)]

    def refresh_target(self) -> None:
        """Copy Q for the target network."""
        self.target = _frozen_copy(self.model)

    def training_loss(self) -> Tensor:
        """Return the mean Huber loss of the temporal-difference errors."""
        _, actions, targets, _ = self.mbatch
        return functional.smooth_l1_loss(self.mb_output.gather(1, actions[:, None]).squeeze(1), targets)

    def choose(self, outputs: Tensor, generator: torch.Generator) -> Tensor:
        """Return the best actions, and random ones with probability `epsilon_end`."""
        random = torch.rand(len(outputs), generator=generator) < self.epsilon_end
        anything = torch.randint(outputs.shape[1], (len(outputs),), generator=generator)
        return torch.where(random, anything, outputs.argmax(1))

    def fisher_batches(self) -> Iterable[tuple[Tensor, None, Tensor]]:
        """Return mini-batches of states from the task's buffer."""
        if self.label not in self.buffers:
            raise ValueError(f"task {self.label} has no replay buffer: train on it before its Fisher is computed")
        for start in range(0, self.fisher_states, 32):
            size = min(32, self.fisher_states - start)
            states = self.buffers[self.label].sample_states(size)
            yield as_input(states), None, torch.full((size,), self.label)

    def has_states(self) -> bool:
        """Return whether the task's buffer has a state to draw."""
        return self.label in self.buffers and self.buffers[self.label].drawable

    def state_dict(self) -> dict[str, Any]:
        """Return what an `RLTemplate` does, buffers and target network. The buffers make it as large as they are."""
        buffers = {label: buffer.state_dict() for label, buffer in self.buffers.items()}
        target = None if self.target is None else dict(self.target.state_dict())
        return super().state_dict() | {"buffers": buffers, "target": target}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Take the state of `state_dict()`; the network has been loaded.

        Raises:
            ValueError: it does not fit, and nothing is changed; the message names the entry.
        """
        self.check_state(state)
        buffers = {label: self._new_buffer() for label in state["buffers"]}
        for label, buffer in buffers.items():
            try:
                buffer.load_state_dict(state["buffers"][label])
            except ValueError as error:
                raise ValueError(f"buffers[{label!r}] in the state of DQN: {error}") from error
        target = None
        if state["target"] is not None:
            target = _frozen_copy(self.model)
            try:
                target.load_state_dict(state["target"])
            except Exception as error:
                raise ValueError(
                    f"target in the state of {type(self).__name__} does not fit the model: {error}"
                ) from error
        super().load_state_dict(state)
        self.buffers, self.target = buffers, target

    def model_adaptation(self, model: nn.Module | None = None) -> nn.Module:
        """Adapt the network; in training, the target network takes over what is new in it, and that only."""
        adapted = super().model_adaptation(model)
        if self.is_training and self.target is not None:
            self._grow_target(self.target)
        return adapted

    @torch.no_grad()
    def _grow_target(self, before: nn.Module) -> None:
        old = _tensors(before)
        if all(name in old and old[name].shape == tensor.shape for name, tensor in _tensors(self.model).items()):
            return
        self.refresh_target()
        for name, tensor in _tensors(self.target).items():
            if name in old and old[name].shape == tensor.shape:
                tensor.copy_(old[name])


def _tensors(network: Any) -> dict[str, Tensor]:
    return dict(network.named_parameters()) | dict(network.named_buffers())


def _frozen_copy(network: nn.Module) -> nn.Module:
    return deepcopy(network).requires_grad_(False).eval()
