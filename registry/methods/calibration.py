"""The calibrated reward: how a reward ranks among those of the reference's own answers to the prompt.

This is InfAlign-CTRL, step 1 (arXiv 2412.19792). It is the distribution function of the reference's rewards, a tie
counting one half. Against the reference it is uniform with mean 1/2 whatever the reward model and the prompt, and a
strictly increasing map of the rewards changes nothing. Rollouts are sampled with the settings that the KL refers to.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray
from scipy.stats import kstest

Array = NDArray[np.float64]


def mid_rank(rewards: Array, rollouts: Array) -> Array:
    """(#{rollouts < r} + 1/2 #{rollouts = r}) / M for each reward r.

    Beyond the rollouts it stays at 0 and 1: what is better than the best of them gains nothing.

    Args:
        rewards: [n].
        rollouts: [M], rewards of the reference's rollouts to the same prompt, none of them among `rewards`
            (see `self_excluded`).
    Returns:
        [n], in [0, 1].
    Raises:
        ValueError: there is no rollout.
    """
    if len(rollouts) == 0:
        raise ValueError("a reward is calibrated against one rollout at least; there is none")
    ordered = np.sort(rollouts)
    return (np.searchsorted(ordered, rewards, "left") + np.searchsorted(ordered, rewards, "right")) / (2 * len(ordered))


def self_excluded(rollouts: Array) -> Array:
    """The calibrated reward of each rollout among the other M - 1.

    Among all M, itself included and counted as one that it reaches, the mean would be (M + 1) / (2 M). Here it is 1/2.

    Args:
        rollouts: [M], rewards of the reference's rollouts to one prompt.
    Returns:
        [M], in the order of `rollouts`.
    Raises:
        ValueError: M is below 2.
    """
    others = len(rollouts) - 1
    if others < 1:
        raise ValueError(f"a rollout is calibrated against the others of its prompt; there are {len(rollouts)} in all")
    # Of the M counts a rollout's own is a tie: one half.
    return (mid_rank(rollouts, rollouts) * (others + 1) - 0.5) / others


def smoothed(calibrated: Array, rollouts: int) -> Array:
    """(M u + 1/2) / (M + 1): strictly inside (0, 1), as a logarithm needs, the mean of a reference draw still 1/2.

    It is the middle of the slots that the reward may take among M + 1 draws (the mean of `uniformity`'s values over V).
    The (#{<} + 1) / (M + 1) of vBoN (arXiv 2407.06057) is the upper end of the lowest of them: it reaches 1, counts
    a tie as lost, and has mean (M + 2) / (2 M + 2) without ties.

    Args:
        calibrated: u, of any shape.
        rollouts: M, the number of rollouts that u was found among (one less for `self_excluded`).
    """
    return (rollouts * calibrated + 0.5) / (rollouts + 1)


def pooled(rewards: Array, rollouts_by_prompt: Sequence[Array]) -> Array:
    """The calibrated reward at a prompt without rollouts: the mean over the calibrated prompts of `mid_rank`.

    Each prompt weighs the same, however many rollouts it has.

    Args:
        rewards: [n].
        rollouts_by_prompt: an array [M_p] for each calibrated prompt.
    Returns:
        [n], in [0, 1].
    Raises:
        ValueError: there is no prompt, or one without rollouts.
    """
    counts = [len(rollouts) for rollouts in rollouts_by_prompt]
    if min(counts, default=0) == 0:
        raise ValueError(f"calibrated prompts have one rollout at least; the numbers given are {counts}")
    every = np.concatenate(rollouts_by_prompt)
    order = np.argsort(every)
    reached = np.concatenate([[0.0], (1 / np.repeat(counts, counts))[order].cumsum()])
    reached /= reached[-1]
    ordered = every[order]
    left, right = (reached[np.searchsorted(ordered, rewards, side)] for side in ("left", "right"))
    return np.asarray((left + right) / 2, dtype=np.float64)


class Uniformity(NamedTuple):
    """Values [P] that are Uniform(0, 1) if calibration holds, with the Kolmogorov-Smirnov test of it."""

    values: Array
    statistic: float
    p_value: float


def uniformity(fresh: Array, rollouts_by_prompt: Sequence[Array], seed: int) -> Uniformity:
    """Whether fresh answers of the reference are to its rollouts as those are to each other.

    Each prompt gives (#{<} + V (#{=} + 1)) / (M + 1) with V ~ Uniform(0, 1): the randomised probability integral
    transform. A fresh draw is equally likely in any place among the M + 1, so this is Uniform(0, 1) exactly, ties or
    none, where `mid_rank` takes few values. A small p-value says that fresh answers and rollouts do not come from one
    distribution by independent draws.

    Args:
        fresh: [P], the reward of one new draw of the reference a prompt.
        rollouts_by_prompt: an array [M_p] for each of the P prompts.
        seed: of V.
    Raises:
        ValueError: the two speak of different numbers of prompts, or of none.
    """
    pairs = list(zip(fresh, rollouts_by_prompt, strict=True))
    below = np.array([np.sum(rollouts < reward) for reward, rollouts in pairs])
    equal = np.array([np.sum(rollouts == reward) for reward, rollouts in pairs])
    draws = np.array([len(rollouts) + 1 for _, rollouts in pairs])
    values = (below + np.random.default_rng(seed).random(len(pairs)) * (equal + 1)) / draws
    found = kstest(values, "uniform")
    return Uniformity(values, float(found.statistic), float(found.pvalue))
