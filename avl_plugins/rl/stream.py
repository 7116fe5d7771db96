"""Tasks of reinforcement learning as an Avalanche benchmark: a visit to an environment is an experience."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from copy import copy
from typing import Any

from avalanche.benchmarks.scenarios import CLScenario
from avalanche.benchmarks.scenarios.generic_scenario import CLExperience, EagerCLStream
from gymnasium import spaces

from avl_plugins.rl.factories import EnvFactory, check_spaces, close_environments, make_environments
from avl_plugins.tasks.arguments import check_callable, check_count, check_kind
from avl_plugins.tasks.keywords import keywords_only

__all__ = ["RLExperience", "rl_benchmark"]

_FACTORY = "number -> gymnasium.vector.VectorEnv of so many environments"


@keywords_only
class RLExperience(CLExperience):
    """A visit to a task: its environments, its label, and how long it lasts.

    Args:
        name: the task's name, a game's for example; errors and metrics use it.
        make_env: makes its environments; called with their number.
        task_label: number of the task. Visits to the same task have the same.
        steps: agent steps of the visit, all environments together; 0 in a test stream.
        observation_space: of one environment.
        action_space: of one environment, discrete.

    Attributes:
        task_labels: the label in a list, as Avalanche's plugins and models read it.
        actions: how many there are.
        classes_in_this_experience: outputs of a network's head for the task, 0 to n - 1: an action each, and what the
            strategy adds to them (`ActorCritic`: the state's value, last). Networks that make a head for each task read
            it; the strategy that trains or evaluates sets it.

    Raises:
        TypeError: an argument is of another kind, or positional.
        ValueError: a number is out of range, observations are no arrays of numbers, or actions are not discrete.
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
        check_kind("name", name, str, "a string")
        check_callable("make_env", make_env, _FACTORY)
        check_count("task_label", task_label, low=0)
        check_count("steps", steps, low=0)
        check_spaces(f"task {name!r}", observation_space, action_space)
        super().__init__(current_experience=None, origin_stream=None)
        self.name = name
        self.make_env = make_env
        self.task_label = int(task_label)
        self.task_labels = [self.task_label]
        self.steps = int(steps)
        self.observation_space = observation_space
        self.action_space = action_space
        self.actions = int(action_space.n)
        self.classes_in_this_experience = list(range(self.actions))

    @property
    def dataset(self) -> Any:
        """There is none, which other strategies are told."""
        raise AttributeError(f"task {self.name!r} has environments and no data set: ActorCritic and DQN act in them")

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
        tasks: environment factories by the tasks' names. The position in it is the task's label.
        steps: agent steps of a visit, one number or one by name.
        schedule: names in the order of the visits; a task may recur. None: each task once, in the order of `tasks`.

    Returns:
        A scenario with a `train_stream`, one experience per visit, and a `test_stream`, one experience per task.

    Raises:
        TypeError: an argument is of another kind.
        ValueError: there is no task or visit, a name in `schedule` or `steps` is unknown or lacking, or `steps` is out
            of range; or if a factory returns something else than the environment asked for, observations are no
            arrays of numbers, actions are not discrete, or the environment does not reset itself as gymnasium's
            vectorised environments do by default (`AutoresetMode.NEXT_STEP`).
        EnvironmentFailedError: a factory raises an exception.
    """
    check_kind("tasks", tasks, Mapping, "a dict of environment factories by name")
    if not tasks:
        raise ValueError("tasks: expected at least one environment factory, got none")
    for name, make_env in tasks.items():
        check_kind("a name in tasks", name, str, "a string")
        check_callable(f"tasks[{name!r}]", make_env, _FACTORY)
    names = list(tasks)
    visits = names if schedule is None else _checked_schedule(schedule, names)
    budgets = _checked_budgets(steps, names, visits)
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


def _checked_schedule(schedule: Any, names: list[str]) -> list[str]:
    if isinstance(schedule, str) or not isinstance(schedule, Iterable):
        raise TypeError(f"schedule must be a list of tasks' names, or None for each task once, got {schedule!r}")
    visits = list(schedule)
    if not visits:
        raise ValueError("schedule: expected at least one visit; leave it out to visit each task once")
    if unknown := [name for name in visits if name not in names]:
        raise ValueError(f"schedule: no such tasks {unknown}; the tasks are {names}")
    return visits


def _checked_budgets(steps: Any, names: list[str], visits: list[str]) -> dict[str, int]:
    if not isinstance(steps, Mapping):
        check_count("steps", steps)
        return dict.fromkeys(names, steps)
    if absent := sorted(set(visits) - steps.keys()):
        raise ValueError(f"steps: it has no value for {absent}")
    if unknown := [name for name in steps if name not in names]:
        raise ValueError(f"steps: no such tasks {unknown}; the tasks are {names}")
    for name, number in steps.items():
        check_count(f"steps[{name!r}]", number)
    return dict(steps)


def _spaces(name: str, make_env: EnvFactory) -> tuple[spaces.Space[Any], spaces.Discrete]:
    env: Any = make_environments(name, make_env, 1)
    close_environments(name, env)
    return env.single_observation_space, env.single_action_space
