"""Tasks of reinforcement learning as an Avalanche benchmark: a visit to an environment is an experience."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from copy import copy
from typing import Any

from avalanche.benchmarks.scenarios import CLScenario
from avalanche.benchmarks.scenarios.generic_scenario import CLExperience, EagerCLStream
from gymnasium import spaces
from gymnasium.vector import AutoresetMode, VectorEnv

__all__ = ["EnvFactory", "RLExperience", "rl_benchmark"]

EnvFactory = Callable[[int], VectorEnv]
"""Makes so many copies of an environment, as one vectorised environment of gymnasium."""


class RLExperience(CLExperience):
    """A visit to a task: its environments, its label, and how long it lasts.

    Args:
        name: The task's name, a game's for example; errors and metrics use it.
        make_env: Makes its environments; called with their number.
        task_label: Number of the task. Visits to the same task have the same.
        steps: Agent steps of the visit, all environments together; 0 in a test stream.
        observation_space: Of one environment.
        action_space: Of one environment, discrete.

    Attributes:
        task_labels: The label in a list, as Avalanche's plugins and models read it.
        classes_in_this_experience: Outputs of a network's head for the task, 0 to n - 1: an action each, and what the
            strategy adds to them (`ActorCritic`: the state's value, last). Networks that make a head for each task read
            it; the strategy that trains or evaluates sets it.
    """

    def __init__(
        self,
        *,
        name: str,
        make_env: EnvFactory,
        task_label: int,
        steps: int,
        observation_space: spaces.Space[Any],
        action_space: spaces.Discrete,
    ) -> None:
        super().__init__(current_experience=None, origin_stream=None)
        self.name = name
        self.make_env = make_env
        self.task_label = task_label
        self.task_labels = [task_label]
        self.steps = steps
        self.observation_space = observation_space
        self.action_space = action_space
        self.actions = int(action_space.n)
        self.classes_in_this_experience = list(range(self.actions))

    def relabelled(self, label: int) -> RLExperience:
        """Return the same visit under another task label."""
        other = copy(self)
        other.task_label, other.task_labels = label, [label]
        return other

    def __repr__(self) -> str:
        return f"RLExperience({self.name!r}, task_label={self.task_label}, steps={self.steps})"


def rl_benchmark(
    tasks: Mapping[str, EnvFactory],
    *,
    steps: int | Mapping[str, int],
    schedule: Sequence[str] | None = None,
) -> CLScenario[Any]:
    """Make a benchmark of tasks that are visited one after another.

        benchmark = rl_benchmark({"pong": AtariEnv(game="pong"), "boxing": AtariEnv(game="boxing")}, steps=1_000_000)
        for visit in benchmark.train_stream:
            strategy.train(visit)
            strategy.eval(benchmark.test_stream)

    Args:
        tasks: Environment factories by the tasks' names. The position in it is the task's label.
        steps: Agent steps of a visit, one number or one by name.
        schedule: Names in the order of the visits; a task may recur. None: each task once, in the order of `tasks`.

    Returns:
        A scenario with a `train_stream`, an experience a visit, and a `test_stream`, an experience a task.

    Raises:
        ValueError: If there is no task or visit, a name in `schedule` or `steps` is unknown or lacking, or `steps` is
            not positive; if an environment's actions are not discrete, or it does not reset itself as gymnasium's
            vectorised environments do by default (`AutoresetMode.NEXT_STEP`).
    """
    if not tasks:
        raise ValueError("tasks: expected at least one environment factory, got none")
    names = list(tasks)
    visits = names if schedule is None else list(schedule)
    if not visits:
        raise ValueError("schedule: expected at least one visit; leave it out to visit each task once")
    if unknown := sorted(set(visits) - set(names)):
        raise ValueError(f"schedule: no such tasks {unknown}; the tasks are {names}")
    budgets = dict(steps) if isinstance(steps, Mapping) else dict.fromkeys(names, steps)
    if absent := sorted(set(visits) - budgets.keys()):
        raise ValueError(f"steps: it has no value for {absent}")
    if bad := {name: number for name, number in budgets.items() if number < 1}:
        raise ValueError(f"steps: expected at least 1 agent step a visit, got {bad}")
    seen = {name: _spaces(name, tasks[name]) for name in names}

    def experience(name: str, number: int) -> RLExperience:
        observations, actions = seen[name]
        return RLExperience(
            name=name,
            make_env=tasks[name],
            task_label=names.index(name),
            steps=number,
            observation_space=observations,
            action_space=actions,
        )

    train = EagerCLStream("train", [experience(name, budgets[name]) for name in visits])
    test = EagerCLStream("test", [experience(name, 0) for name in names])
    return CLScenario([train, test])


def _spaces(name: str, make_env: EnvFactory) -> tuple[spaces.Space[Any], spaces.Discrete]:
    env = make_env(1)
    try:
        if not isinstance(env, VectorEnv):
            raise ValueError(
                f"task {name!r}: its factory has returned a {type(env).__name__}; it has to take a number n and return "
                "n environments as one gymnasium.vector.VectorEnv, for example lambda n: gymnasium.make_vec(id, n)"
            )
        if not isinstance(env.single_action_space, spaces.Discrete) or env.single_action_space.start != 0:
            raise ValueError(
                f"task {name!r}: expected discrete actions from 0 on, and the action space is {env.single_action_space}"
            )
        mode = env.metadata.get("autoreset_mode", AutoresetMode.NEXT_STEP)
        if AutoresetMode(mode) is not AutoresetMode.NEXT_STEP:
            raise ValueError(
                f"task {name!r}: its environments reset themselves in the mode {mode}; make them with "
                "autoreset_mode=AutoresetMode.NEXT_STEP, gymnasium's default"
            )
        return env.single_observation_space, env.single_action_space
    finally:
        env.close()
