"""Continual reinforcement learning on gymnasium's environments, in Avalanche's template.

It needs the extra "rl": pip install "avl-plugins[rl]".
"""

try:
    import gymnasium as _gymnasium  # noqa: F401
except ModuleNotFoundError as error:
    raise ModuleNotFoundError(
        'avl_plugins.rl needs gymnasium, which is an extra: pip install "avl-plugins[rl]"', name=error.name
    ) from error

from avl_plugins.rl.actor_critic import ActorCritic as ActorCritic
from avl_plugins.rl.actor_critic import policy as policy
from avl_plugins.rl.atari import AtariEnv as AtariEnv
from avl_plugins.rl.dqn import DQN as DQN
from avl_plugins.rl.environments import EnvironmentFailedError as EnvironmentFailedError
from avl_plugins.rl.recognition import TaskRecognition as TaskRecognition
from avl_plugins.rl.recognition_plugin import TaskRecognitionPlugin as TaskRecognitionPlugin
from avl_plugins.rl.scores import ATARI_SCORES as ATARI_SCORES
from avl_plugins.rl.scores import human_normalised as human_normalised
from avl_plugins.rl.stream import RLExperience as RLExperience
from avl_plugins.rl.stream import rl_benchmark as rl_benchmark
from avl_plugins.rl.task_gains import TaskGains as TaskGains
