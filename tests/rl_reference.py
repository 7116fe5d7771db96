"""Slow, obviously right versions of the reinforcement learning parts: plain Python, one number at a time."""

import copy
import itertools
import math

import torch
from torch import Tensor


class PixelModel:
    """Counts of each level at each pixel, and the Dirichlet-multinomial prediction from them."""

    def __init__(self, pixels: int, levels: int, concentration: float) -> None:
        self.counts = [[0] * levels for _ in range(pixels)]
        self.learnt, self.levels, self.concentration = 0, levels, concentration

    def log_p(self, observation: list[int]) -> float:
        total = self.learnt + self.levels * self.concentration
        return sum(
            math.log((row[x] + self.concentration) / total) for row, x in zip(self.counts, observation, strict=True)
        )

    def learn(self, observation: list[int]) -> None:
        for row, x in zip(self.counts, observation, strict=True):
            row[x] += 1
        self.learnt += 1


class RecognitionReference:
    """Every model learns in every window, and all but the best are put back from copies made before it."""

    def __init__(self, pixels: int, levels: int, concentration: float, window: int, max_contexts: int | None) -> None:
        self.settings = (pixels, levels, concentration)
        self.window, self.max_contexts = window, max_contexts
        self.models: list[PixelModel] = []
        self.posterior: list[float] = []
        self.windows = 0

    def learn_window(self, window: list[list[int]]) -> int:
        """Returns the context of the highest posterior."""
        self.windows += 1
        holdouts = [PixelModel(*self.settings)]
        if self.max_contexts is not None and len(self.models) >= self.max_contexts:
            holdouts = []
        models = self.models + holdouts
        before = copy.deepcopy(self.models)
        evidence = [0.0] * len(models)
        for observation in window:
            for k, model in enumerate(models):
                evidence[k] += model.log_p(observation)
                model.learn(observation)
        best = max(range(len(models)), key=lambda k: evidence[k])
        self.models = [models[k] if k == best else old for k, old in enumerate(before)]
        if best == len(before):
            self.models.append(models[best])
        joint = []
        matrix = transition_matrix(len(models), 1 / self.windows)
        old = self.posterior + [0.0] * len(holdouts)
        for c in range(len(models)):
            prior = sum(matrix[c][d] * old[d] for d in range(len(models))) if self.posterior else 1.0
            joint.append(math.log(prior) + evidence[c] if prior > 0 else -math.inf)
        joint = joint[: len(self.models)]
        weights = [math.exp(j - max(joint)) for j in joint]
        self.posterior = [w / sum(weights) for w in weights]
        return max(range(len(self.models)), key=lambda c: self.posterior[c])


def transition_matrix(states: int, alpha: float) -> list[list[float]]:
    """[c][c']: probability of c after c'."""
    if states == 1:
        return [[1.0]]
    return [[1 - alpha if c == d else alpha / (states - 1) for d in range(states)] for c in range(states)]


def filter_by_paths(first: list[float], log_evidence: Tensor, alphas: list[float]) -> Tensor:
    """The posterior of the last state: the probabilities of all paths that end in it, summed."""
    steps, states = log_evidence.shape
    ends = torch.zeros(states, dtype=torch.float64)
    for path in itertools.product(range(states), repeat=steps + 1):
        p = first[path[0]]
        for t in range(steps):
            p *= transition_matrix(states, alphas[t])[path[t + 1]][path[t]] * math.exp(log_evidence[t, path[t + 1]])
        ends[path[-1]] += p
    return ends / ends.sum()
