"""Which task is this? Inferred from observations (Kirkpatrick et al. 2017, appendix 4.2; Milan et al. 2016)."""

from __future__ import annotations

import logging
import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from avl_plugins.rl.entries import a_count, a_dict, a_tensor, check_entries, or_none
from avl_plugins.tasks.arguments import check_choice, check_count, check_kind, check_number
from avl_plugins.tasks.keywords import keywords_only

__all__ = ["TaskRecognition", "filter_contexts", "observation_levels", "window_log_evidence"]

log = logging.getLogger(__name__)

_ENTRIES = {
    "settings": a_dict,
    **dict.fromkeys(("counts", "learnt", "posterior", "recent"), a_tensor),
    "windows": a_count,
    "context": or_none(a_count),
}


@keywords_only
class TaskRecognition:
    r"""Infers from observations alone which task they come from, and finds new tasks (arXiv:1612.00796, app. 4.2).

    Each task is a context c with a model of its observations: every pixel i has its own multinomial over L levels with
    a symmetric Dirichlet(a) prior. With n_ci(v) the times pixel i had level v in the N_c observations that c has learnt
    from, the next observation x has

        p(x | c) = prod_i (n_ci(x_i) + a) / (N_c + L a).

    Contexts change as in a hidden Markov model: p(c | c') is 1 - alpha to stay and alpha in all to switch, alpha = 1/t
    in the t-th window. Observations come in windows of W. In a window every model learns; at its end the one that
    explains it best keeps what it has learnt and the others are set back. A hold-out model that has learnt nothing
    takes part each time; where it explains the window best, it becomes a new context and a new one takes its place.
    The task is the context of the highest posterior probability.

    What the paper leaves open is settled so:

    - *Explaining a window* is the sum over its observations, in order, of log p(x | c), each model having learnt the
      earlier ones; so does the hold-out, which is uniform for the first only. Were it uniform for all, known contexts
      would be preferred too long (tried: with 16 levels and a >= 1/2, one of three Atari games passed for another).
    - *Setting back* leaves no trace: what the window adds is kept apart until the best model is known.
    - *The hold-out is a state of the Markov model*, entered by a switch. The alpha of a switch is shared evenly by the
      other states (the paper's formula gives alpha to each, and sums to 1 with two only). If the hold-out wins, its
      posterior is the new context's, else the posterior is that given one of the contexts. The winner has the highest
      evidence, not the highest posterior; they differ only where two contexts explain a window about equally well.
    - *Sharpness*: thousands of pixels make the posterior all but 0 or 1. It is not tempered: alpha lets any context
      return at the next window.
    - *Levels and concentration*: 16 and a = 0.03. Tried with random actions on Pong, Breakout and Space Invaders, three
      rounds of 300 steps, 4 to 64 levels, a from 1e-4 to 2: with a <= 0.2, three contexts and every window called by
      its game; with 64 levels and a >= 1, two games merged. With every fourth frame, 16 levels and a >= 1/2 merged two,
      and a window across a change of game could leave a fourth context behind, not used again. Of ten games in rounds
      of 1,000 none passed for another; Enduro, whose colours follow the hour, had 3 to 6 contexts, Jamesbond 2 or 3.

    Sparse games that differ in few pixels are hard to tell apart, and need longer windows. Tried on MinAtar's Breakout,
    Space Invaders and Asterix (C + 1 levels, see `observation_levels`; every fourth step observed; three visits each,
    in all six orders): random play with 3,000 steps a visit; and with 6,000, random play, then a DQN after 24,000
    steps of learning, with 30 and with 5 % random actions:

    - W = 4, a = 0.03: up to 14 % (random play) and 55 % (DQN) of windows had a context that was mostly another game's,
      the most where Space Invaders came before Breakout; 48 to 324 changes of context where the game changed 8 times.
    - W = 32, a = 0.3: 1.4 to 1.9 % and 0.7 to 5.5 %, windows across a change of game included; 3 or 4 contexts. A label
      that waits for three windows in a row to agree (`TaskRecognitionPlugin`) is of the right game ever after, and
      changes 8 times; in two of the twelve trials 13, between two contexts of Space Invaders.
    - W = 32, a = 1: two games are one context. W = 16, a = 0.3: 1 to 3 % and 7 %.

    Of five games, Freeway and Asterix were one context with W = 4 and every fourth observation, two with every one.
    Planes as they are, with two levels, did worse: most are empty.

    The paper learns from every fourth step: call `observe` with every fourth observation. All must be of one stream: of
    parallel environments, give one's. A context may be a scene rather than a game, and none are merged. Atari's trials
    had random play; how many contexts an agent adds there that learns to reach new scenes was not tried.

    Args:
        shape: shape of an observation, such as (42, 42).
        levels: L, the number of levels of a pixel; levels are 0 to L - 1.
        window: W, in observations.
        concentration: a, of each level.
        max_contexts: with that many, the hold-out takes no part. None: no limit. A context takes 4 L bytes a pixel.

    Attributes:
        context: the current context, 0, 1, ... in the order of appearance; None before the end of the first window.
        posterior: (contexts,), float64: probability of each context after the latest window.
        windows: t, how many windows have been completed.

    Raises:
        TypeError: an argument is of another kind, or positional.
        ValueError: an argument is out of its range.
    """

    def __init__(
        self,
        *,
        shape: Sequence[int],
        levels: int = 16,
        window: int = 4,
        concentration: float = 0.03,
        max_contexts: int | None = None,
    ) -> None:
        check_kind("shape", shape, Sequence, "the sizes of an observation, such as (42, 42)")
        if not shape:
            raise ValueError("shape must be the sizes of an observation, such as (42, 42), got none")
        for side in shape:
            check_count("each size in shape", side)
        check_count("levels", levels, low=2)
        check_count("window", window)
        check_number("concentration", concentration, low=1e-9, high=1e9)
        check_count("max_contexts", max_contexts, none="no limit")
        self.shape = tuple(map(int, shape))
        self.levels, self.window, self.concentration = levels, window, float(concentration)
        self.max_contexts = max_contexts
        sizes = {"shape": list(self.shape), "levels": int(levels), "window": int(window)}
        self._settings = {**sizes, "concentration": self.concentration}
        self.context: int | None = None
        self.posterior = torch.zeros(0, dtype=torch.float64)
        self.windows = 0
        self._counts = torch.zeros(0, math.prod(self.shape), levels, dtype=torch.int32)
        self._learnt = torch.zeros(0, dtype=torch.int64)
        self._recent = torch.zeros(0, math.prod(self.shape), dtype=torch.int64)

    @property
    def contexts(self) -> int:
        """How many contexts there are."""
        return len(self._learnt)

    def observe(self, observation: Tensor | np.ndarray) -> int | None:
        """Take one observation, and name the context at the end of a window.

        Args:
            observation: levels, of `shape`, integers from 0 to `levels` - 1 (or bool). `observation_levels` makes them.

        Returns:
            The current context if this observation completes a window, else None.

        Raises:
            ValueError: it has another shape or dtype, or levels are out of range. Nothing is changed then.
        """
        levels = self._checked(torch.as_tensor(observation), self.shape, "observation")
        window = torch.cat([self._recent, levels.view(1, -1)])
        if len(window) < self.window:
            self._recent = window
            return None
        self._recent = window[:0]
        self.windows += 1
        evidence = window_log_evidence(self._counts, self._learnt, window, concentration=self.concentration)
        if self.contexts == self.max_contexts:
            evidence = evidence[:-1]
        scores = evidence.tolist()
        best = scores.index(max(scores))  # the first of equals: a known context before the hold-out
        if best == self.contexts:
            self._counts = torch.cat([self._counts, self._counts.new_zeros(1, *self._counts.shape[1:])])
            self._learnt = torch.cat([self._learnt, self._learnt.new_zeros(1)])
            log.info("window %d is explained by no known context: context %d begins", self.windows, best)
        self.posterior = filter_contexts(self.posterior, evidence, alpha=1 / self.windows, kept=self.contexts)
        places = _places(window, self.levels)
        self._counts[best].view(-1).index_add_(0, places, torch.ones_like(places, dtype=torch.int32))
        self._learnt[best] += len(window)
        probabilities = self.posterior.tolist()
        self.context = probabilities.index(max(probabilities))
        return self.context

    def match(self, window: Tensor | np.ndarray) -> int:
        """Name the context that explains a window best, without learning from it.

        Args:
            window: levels, (observations, *shape); any number of observations.

        Raises:
            ValueError: as `observe`, or there is no context yet.
        """
        if not self.contexts:
            raise ValueError("there is no context yet: observe a window first")
        levels = self._checked(torch.as_tensor(window), (len(window), *self.shape), "window").flatten(1)
        evidence = window_log_evidence(self._counts, self._learnt, levels, concentration=self.concentration)
        return int(evidence[:-1].argmax())

    def state_dict(self) -> dict[str, Any]:
        """Return tensors (copies) and plain values, also in the midst of a window."""
        return {
            "settings": dict(self._settings),
            "counts": self._counts.clone(),
            "learnt": self._learnt.clone(),
            "posterior": self.posterior.clone(),
            "recent": self._recent.clone(),
            "windows": self.windows,
            "context": self.context,
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Take the state of `state_dict()`; tensors are copied. What follows is then bit-equal.

        Raises:
            ValueError: an entry is missing, unknown or of another kind, the settings are others (`max_contexts` may be,
                if it is not exceeded), or the state contradicts itself. Nothing is changed then.
        """
        check_entries("a TaskRecognition", state, _ENTRIES)
        if state["settings"] != self._settings:
            raise ValueError(f"the state is of other settings: {state['settings']}, these are {self._settings}")
        counts, learnt, posterior, recent = (state[name] for name in ("counts", "learnt", "posterior", "recent"))
        windows, context, number = state["windows"], state["context"], len(state["learnt"])
        if self.max_contexts is not None and number > self.max_contexts:
            raise ValueError(f"the state has {number} contexts, max_contexts is {self.max_contexts}: raise it")
        recent = self._checked(recent, (len(recent), self._counts.shape[1]), "the state's recent")
        sound = {
            "learnt": lambda: (
                (learnt.dtype, learnt.shape) == (torch.int64, (number,))
                and int(learnt.sum()) == windows * self.window
                and bool((learnt >= 0).all())
            ),
            "counts": lambda: (
                (counts.dtype, counts.shape) == (torch.int32, (number, *self._counts.shape[1:]))
                and bool((counts >= 0).all() and (counts.sum(-1) == learnt[:, None]).all())
            ),
            "posterior": lambda: (
                (posterior.dtype, posterior.shape) == (torch.float64, (number,))
                and bool((posterior >= 0).all())
                and (number == 0 or abs(float(posterior.sum()) - 1) < 1e-6)
            ),
            "recent": lambda: len(recent) < self.window,
            "context": lambda: (context is None) == (number == 0) and (context or 0) < max(number, 1),
        }
        for name, fits in sound.items():
            if not fits():
                raise ValueError(f"the state contradicts itself in {name} (shape, dtype or values): it is damaged")
        self._counts, self._learnt = counts.detach().cpu().clone(), learnt.detach().cpu().clone()
        self.posterior = posterior.detach().cpu().clone()
        self._recent, self.windows, self.context = recent, int(windows), context

    def _checked(self, levels: Tensor, shape: tuple[int, ...], name: str) -> Tensor:
        """Levels as int64 on the CPU, in memory of their own."""
        if levels.is_floating_point() or levels.is_complex():
            raise ValueError(f"{name} must be integer levels, got {levels.dtype}: see observation_levels")
        if levels.shape != shape:
            raise ValueError(f"{name} must have the shape {shape}, got {tuple(levels.shape)}")
        levels = levels.detach().to("cpu", torch.int64, copy=True)
        if levels.numel():
            low, high = (int(bound) for bound in levels.aminmax())
            if low < 0 or high >= self.levels:
                raise ValueError(f"{name} must have levels from 0 to {self.levels - 1}, got {low} to {high}")
        return levels


def window_log_evidence(counts: Tensor, learnt: Tensor, window: Tensor, *, concentration: float) -> Tensor:
    r"""Log probability of a window under each model, and under one that has learnt nothing; all learn as it goes.

    sum_w sum_i log [(n_i(x_wi) + m_wi + a) / (N + w + L a)], w = 0 ... W - 1, where m_wi counts earlier observations of
    the window with the same level at pixel i. It is the log of the Dirichlet-multinomial's sequence likelihood,
    prod_i [Gamma(A) / Gamma(A + W)] prod_v [Gamma(a_v + m_v) / Gamma(a_v)], with a_v = n_i(v) + a, A = N + L a and m_v
    the times v occurs in the window.

    Args:
        counts: n, (K, pixels, L), integers.
        learnt: N, (K,), observations in each model's counts.
        window: x, (W, pixels), int64, levels from 0 to L - 1.
        concentration: a, from 1e-9 to 1e9.

    Returns:
        (K + 1,), float64, in nats; the last is of n = 0, N = 0.
    """
    length, pixels = window.shape
    models, levels = len(counts), counts.shape[-1]
    seen = counts.new_zeros(models + 1, length * pixels)
    seen[:-1] = counts.flatten(1).gather(1, _places(window, levels).expand(models, -1))
    seen += torch.cat([(window[:w] == window[w]).sum(0) for w in range(length)]).to(seen.dtype)
    terms = seen.view(-1, length, pixels).double() + concentration
    # The log costs most: it is taken of four factors at a time, whose product is from 1e-36 to 1e40.
    gained = sum(factors.prod(1).log_().sum(1) for factors in terms.split(4, dim=1))
    totals = torch.cat([learnt, learnt.new_zeros(1)]).double()[:, None] + torch.arange(length) + levels * concentration
    return gained - pixels * totals.log().sum(1)


def _places(window: Tensor, levels: int) -> Tensor:
    """Where the window's levels are in a model's counts, flattened: (W pixels,)."""
    return (window + torch.arange(window.shape[1]) * levels).flatten()


def filter_contexts(posterior: Tensor, log_evidence: Tensor, *, alpha: float, kept: int) -> Tensor:
    r"""One step of the hidden Markov model's filter: p(c | o_1..t) ~ p(o_t | c) sum_c' p(c | c') p(c' | o_1..t-1).

    p(c | c') is 1 - alpha for c = c' and alpha / (S - 1) for the other S - 1 states; 1 where there is one state.

    Args:
        posterior: (K,), float64, before this step.
        log_evidence: (S,), float64, S >= K and S >= 1: states beyond K have had probability 0 (the hold-out).
        alpha: probability of a switch, in [0, 1].
        kept: the result, (kept,) and of sum 1, is the posterior given one of the first `kept` states.
    """
    states = len(log_evidence)
    if states == 1:
        return log_evidence.softmax(0)
    before = torch.cat([posterior, posterior.new_zeros(states - len(posterior))])
    prior = (1 - alpha) * before + alpha / (states - 1) * (1 - before).clamp(min=0)  # a rounded sum may exceed 1
    return (prior.log() + log_evidence)[:kept].softmax(0)


def observation_levels(
    observations: Tensor | np.ndarray, *, levels: int = 16, downscale: int = 2, channels: int = -1
) -> Tensor:
    """Observations of an environment as the integer levels that `TaskRecognition` takes.

    - Images: uint8, (B, frames, H, W), of which the last frame is taken, or (B, H, W). Blocks of downscale x downscale
      pixels are averaged, and the grey values 0 to 255 cut into `levels` equal parts: (B, H/downscale, W/downscale).
    - Planes, such as MinAtar's (B, 10, 10, C): bool, or numbers that are 0 and 1. A pixel's level is the number of the
      last plane that is on, from 1, and 0 where none is: (B, 10, 10), which needs `levels` >= C + 1 (best just that).

    Args:
        observations: a batch.
        levels: L. The result, int64 and on the CPU, is from 0 to L - 1.
        downscale: side of a block, for images.
        channels: the dimension of the channels in the batch, for planes: -1 or 1.

    Raises:
        TypeError: a number is none.
        ValueError: another shape, sides that `downscale` does not divide, planes not of 0 and 1, few levels.
    """
    check_count("levels", levels, low=2)
    check_count("downscale", downscale)
    check_choice("channels", channels, (-1, 1))
    given = torch.as_tensor(observations).detach().cpu()
    shape = tuple(given.shape)
    if given.dtype == torch.uint8:
        if len(shape) not in (3, 4):
            raise ValueError(f"uint8 observations must be images (B, frames, H, W) or (B, H, W), got shape {shape}")
        height, width = shape[-2:]
        if height % downscale or width % downscale:
            raise ValueError(f"downscale must divide the sides of the images, got {downscale} for {height} x {width}")
        if levels > 256:
            raise ValueError(f"levels must be from 2 to 256 for images, got {levels}")
        frames = given[:, -1] if len(shape) == 4 else given
        blocks = frames.unflatten(2, (-1, downscale)).unflatten(1, (-1, downscale))
        return blocks.sum((2, 4)) * levels // (256 * downscale**2)
    if len(shape) < 3:
        raise ValueError(f"planes need 3 or more dimensions, got {shape}")
    if not ((given == 0) | (given == 1)).all():
        raise ValueError("observations must be planes of 0 and 1, or images as uint8, from 0 to 255")
    if levels <= shape[channels]:
        raise ValueError(f"levels must be at least {shape[channels] + 1} for {shape[channels]} planes, got {levels}")
    return (given.bool().movedim(channels, -1) * torch.arange(1, shape[channels] + 1)).amax(-1)
