"""Continual reinforcement learning on gymnasium's environments, in Avalanche's template.

It needs the extra "rl": pip install "avl-plugins[rl]".
"""

try:
    import gymnasium as _gymnasium  # noqa: F401
except ModuleNotFoundError as error:
    raise ModuleNotFoundError(
        'avl_plugins.rl needs gymnasium, which is an extra: pip install "avl-plugins[rl]"', name=error.name
    ) from error

from avl_plugins.rl.actor_critic import ActorCritic, policy
from avl_plugins.rl.atari import AtariEnv
from avl_plugins.rl.dqn import DQN
from avl_plugins.rl.environments import EnvironmentFailedError
from avl_plugins.rl.recognition import TaskRecognition
from avl_plugins.rl.recognition_plugin import TaskRecognitionPlugin
from avl_plugins.rl.scores import ATARI_SCORES, human_normalised
from avl_plugins.rl.stream import RLExperience, rl_benchmark
from avl_plugins.rl.task_gains import TaskGains

__all__ = [
    "ATARI_SCORES",
    "DQN",
    "ActorCritic",
    "AtariEnv",
    "EnvironmentFailedError",
    "RLExperience",
    "TaskGains",
    "TaskRecognition",
    "TaskRecognitionPlugin",
    "human_normalised",
    "policy",
    "rl_benchmark",
]
