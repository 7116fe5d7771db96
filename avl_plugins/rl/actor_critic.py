"""Synchronous advantage actor-critic, as an Avalanche strategy."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Any, ClassVar

import torch
from torch import Tensor, nn
from torch.distributions import Categorical, Distribution
from torch.optim import Optimizer

from avl_plugins.rl.calls import as_input
from avl_plugins.rl.entries import Check, a_dict
from avl_plugins.rl.environments import Environments
from avl_plugins.rl.states import RecentStates
from avl_plugins.rl.stream import RLExperience
from avl_plugins.rl.template import RLTemplate
from avl_plugins.tasks.arguments import check_count, check_flag, check_number

__all__ = ["ActorCritic", "advantages", "policy"]


def policy(outputs: Tensor) -> Categorical:
    """Return the policy of an actor-critic's outputs (B, actions + 1), the last of which is the state's value.

    It is the `likelihood` of `EWCPlugin` (by default) and `diagonal_fisher` for an actor-critic: the Fisher of the
    policy.
    """
    return Categorical(logits=outputs[:, :-1], validate_args=False)


def advantages(
    rewards: Tensor, values: Tensor, terminated: Tensor, truncated: Tensor, *, gamma: float, gae_lambda: float = 1.0
) -> Tensor:
    """Return the advantages A_t = sum_k (gamma gae_lambda)^k delta_(t+k), delta_t = r_t + gamma V(s_(t+1)) - V(s_t).

    The sum ends with the episode or with the last step. V(s_(t+1)) is 0 after a terminated episode. With gae_lambda = 1
    it is the n-step advantage of A3C, r_t + gamma r_(t+1) + ... + gamma^n V(s_(t+n)) - V(s_t) (Mnih et al. 2016,
    arXiv:1602.01783, alg. S3), else generalised advantage estimation (Schulman et al. 2016, arXiv:1506.02438, eq. 16).

    Args:
        rewards: (T, N).
        values: (T + 1, N): V of the states before each step, and of those after the last.
        terminated: (T, N), bool.
        truncated: (T, N), bool.
        gamma: discount.
        gae_lambda: of the estimator, in [0, 1].

    Returns:
        (T, N).
    """
    alive = (~terminated).to(rewards)
    goes_on = (~(terminated | truncated)).to(rewards)
    delta = rewards + gamma * alive * values[1:] - values[:-1]
    found = torch.empty_like(delta)
    following = torch.zeros_like(delta[0])
    for t in range(len(delta) - 1, -1, -1):
        found[t] = following = delta[t] + gamma * gae_lambda * goes_on[t] * following
    return found


class ActorCritic(RLTemplate):
    r"""Advantage actor-critic with n-step returns, the synchronous version of A3C (Mnih et al. 2016, arXiv:1602.01783).

    After `rollout` steps of all environments there is one update with the mean over these states of

        -log pi(a|s) A + value_weight (R - V(s))^2 - entropy_weight H(pi(.|s)),

    A the n-step advantage, held constant, and R = A + V(s) the return; see `advantages`. With `minibatches` there are
    as many updates instead, each with the mean over another share of these states, drawn at random: as for A3C's
    workers, the network that acted is then some updates older than the one that learns. `clip_ratio` keeps it near:
    with rho = pi(a|s) / pi_acted(a|s) the first term is that of proximal policy optimisation (Schulman et al. 2017,
    arXiv:1707.06347, eq. 7), max(-rho A, -clip(rho, 1 - clip_ratio, 1 + clip_ratio) A), whose gradient is the same
    where the two networks are.

    It stands in for the asynchronous agent of Progressive Networks (Rusu et al. 2016, arXiv:1606.04671, app. C):
    `num_envs` environments in step for 16 workers that update without waiting, means over them where the paper's
    workers take sums. The paper's optimizer is RMSProp without momentum and centring, lr 1e-3, 5e-4 or 1e-4, entropy
    1e-2, 1e-3 or 1e-4, gradient norm 20 or 40; discount 0.99, 5 steps and RMSProp's decay 0.99 are A3C's.

    The network has an output for each action, the logits of the policy, and one more for the value. Networks that make
    heads themselves (`ProgressiveNetwork`) do that without being told. `EWCPlugin` takes the Fisher of the `policy`,
    unless it is given another `likelihood`: the value is not protected.

    Args:
        model: (B, ...) -> (B, actions + 1).
        optimizer: its optimizer.
        rollout: steps of each environment before they are learnt from, t_max.
        minibatches: updates for a rollout; the last rollout of an epoch may be too short for so many.
        gae_lambda: 1 is the n-step advantage.
        value_weight: weight of the value's loss.
        entropy_weight: weight of the entropy, beta.
        normalise_advantages: divide them by their standard deviation in the mini-batch, after subtracting the mean.
        clip_ratio: how far rho may be from 1; None: the policy may move as it likes.
        fisher_states: states that are kept of the task for the Fisher: 100 mini-batches of 32, as for the paper's DQN.
            One step of all environments is kept of each rollout. Those of the latest four tasks are.
        eval_greedy: take the most likely action in evaluation; else sample, as in training.
        **kwargs: of `RLTemplate`: num_envs, epoch_steps, gamma, max_grad_norm (40 here), eval_episodes, ...

    Raises:
        TypeError: an argument is of another kind, or positional.
        ValueError: an argument is out of range, or an `RLTemplate` says so.
    """

    outputs_are = "one for each action and the value"
    state_entries: ClassVar[dict[str, Check]] = RLTemplate.state_entries | {"states": a_dict}

    def __init__(
        self,
        *,
        model: nn.Module,
        optimizer: Optimizer,
        rollout: int = 5,
        minibatches: int = 1,
        gae_lambda: float = 1.0,
        value_weight: float = 0.5,
        entropy_weight: float = 0.01,
        normalise_advantages: bool = False,
        clip_ratio: float | None = None,
        fisher_states: int = 3200,
        eval_greedy: bool = False,
        max_grad_norm: float | None = 40.0,
        **kwargs: Any,
    ) -> None:
        for name, value in (("rollout", rollout), ("minibatches", minibatches), ("fisher_states", fisher_states)):
            check_count(name, value)
        check_number("gae_lambda", gae_lambda, low=0, high=1)
        check_number("value_weight", value_weight, low=0)
        check_number("entropy_weight", entropy_weight, low=0)
        check_number("clip_ratio", clip_ratio, low=0, high=1, open_low=True, open_high=True, none="no bound")
        check_flag("normalise_advantages", normalise_advantages)
        check_flag("eval_greedy", eval_greedy)
        self.rollout, self.minibatches, self.gae_lambda = rollout, minibatches, gae_lambda
        self.value_weight, self.entropy_weight = value_weight, entropy_weight
        self.normalise_advantages, self.clip_ratio = normalise_advantages, clip_ratio
        self.eval_greedy = eval_greedy
        self.states = RecentStates(fisher_states)
        super().__init__(model=model, optimizer=optimizer, max_grad_norm=max_grad_norm, **kwargs)
        if minibatches > rollout * self.num_envs:
            raise ValueError(
                f"minibatches must be at most the {rollout * self.num_envs} states of a rollout, got {minibatches}"
            )

    def head_outputs(self, experience: RLExperience) -> int:
        """One for each action, and the value."""
        return experience.actions + 1

    def updates_in(self, steps: int) -> int:
        """Return `minibatches` for each rollout; the last rollout may be shorter."""
        whole, rest = divmod(steps, self.num_envs * self.rollout)
        return whole * self.minibatches + min(rest, self.minibatches)

    def rollouts(self, environments: Environments, steps: int) -> Iterator[list[Tensor]]:
        """Yield [states, actions, returns, advantages, weights, log pi_acted(a|s), task labels], each (B, ...)."""
        left = steps // self.num_envs
        while left:
            length = min(self.rollout, left)
            left -= length
            self.switch_if_requested()
            columns = self._rollout(environments, length)
            if self.minibatches == 1:
                yield columns
                continue
            states = len(columns[0])
            for chosen in torch.randperm(states).tensor_split(min(states, self.minibatches)):
                yield [column[chosen] for column in columns]

    @torch.no_grad()
    def _rollout(self, environments: Environments, length: int) -> list[Tensor]:
        observations = environments.observations
        seen = self._scratch("states", (length, *observations.shape), observations.dtype, observations.device)
        kinds = [torch.float32, torch.bool, torch.bool, torch.bool]
        rewards, terminated, truncated, valid = (torch.empty(length, self.num_envs, dtype=kind) for kind in kinds)
        actions = torch.empty(length, self.num_envs, dtype=torch.long)
        logits: list[Tensor] = []
        values = torch.empty(length + 1, self.num_envs)
        for t in range(length):
            seen[t] = environments.observations
            outputs = self.outputs(environments.observations).float().cpu()
            values[t] = outputs[:, -1]
            actions[t] = _sampled(outputs[:, :-1])
            logits.append(outputs[:, :-1])
            step = environments.step(actions[t])
            self.notice(step.observations)
            rewards[t], terminated[t], truncated[t], valid[t] = (
                self.clipped(step.rewards),
                step.terminated,
                step.truncated,
                step.valid,
            )
        values[length] = self.outputs(environments.observations)[:, -1].float().cpu()
        # A step that only begins an episode is left out by its weight; nothing flows over it, as the one before ended.
        found = advantages(rewards, values, terminated, truncated, gamma=self.gamma, gae_lambda=self.gae_lambda)
        self.states.add(seen[int(torch.randint(length, ()))], self.label)
        self.count(length * self.num_envs)
        labels = torch.full((length * self.num_envs,), self.label)
        log_pi = torch.stack(logits).log_softmax(2).gather(2, actions[..., None]).squeeze(2)
        columns = (seen, actions, found + values[:-1], found, valid.float(), log_pi)
        return [*(column.flatten(0, 1) for column in columns), labels]

    def training_loss(self) -> Tensor:
        """Return the actor-critic loss, the mean over the valid states."""
        _, actions, returns, advantage, weights, acted, _ = self.mbatch
        share = weights / weights.sum().clamp_min(1)
        if self.normalise_advantages:
            mean = (share * advantage).sum()
            advantage = (advantage - mean) / ((share * (advantage - mean).square()).sum().sqrt() + 1e-8)
        logits, values = self.mb_output[:, :-1], self.mb_output[:, -1]
        log_pi = logits.log_softmax(1)
        entropy = -(log_pi.exp() * log_pi).sum(1)
        chosen = log_pi.gather(1, actions[:, None]).squeeze(1)
        if self.clip_ratio is None:
            gain = chosen * advantage
        else:
            ratio = (chosen - acted).exp()
            near = ratio.clamp(1 - self.clip_ratio, 1 + self.clip_ratio)
            gain = torch.minimum(ratio * advantage, near * advantage)
        each = -gain + self.value_weight * (returns - values).square() - self.entropy_weight * entropy
        return (share * each).sum()

    @torch.no_grad()
    def choose(self, outputs: Tensor, generator: torch.Generator) -> Tensor:
        """Return the most likely actions, or sampled ones."""
        return outputs[:, :-1].argmax(1) if self.eval_greedy else _sampled(outputs[:, :-1], generator)

    def fisher_batches(self) -> Iterable[tuple[Tensor, None, Tensor]]:
        """Return the states that have been kept of the task, 32 at a time."""
        for states in self.states.of(self.label).split(32):
            yield as_input(states), None, torch.full((len(states),), self.label)

    def fisher_likelihood(self) -> Callable[[Tensor], Distribution]:
        """Return the policy: what EWC protects by default."""
        return policy

    def has_states(self) -> bool:
        """Return whether states of the task have been kept."""
        return self.label in self.states

    def state_dict(self) -> dict[str, Any]:
        """Return what an `RLTemplate` does, and the states that have been kept."""
        return super().state_dict() | {"states": self.states.state_dict()}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Take the state of `state_dict()`.

        Raises:
            ValueError: it does not fit, and nothing is changed; the message names the entry.
        """
        self.check_state(state)
        states = RecentStates(self.states.capacity)
        states.load_state_dict(state["states"])
        super().load_state_dict(state)
        self.states = states


def _sampled(logits: Tensor, generator: torch.Generator | None = None) -> Tensor:
    """Draw from the softmax: the largest of the logits with Gumbel noise."""
    noise = torch.empty_like(logits).exponential_(generator=generator)
    return (logits - noise.log()).argmax(1)
