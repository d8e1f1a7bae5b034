"""Comparing policies on the same prompts: win rates with half ties, and bootstrap intervals over prompts.

The unit of resampling is the prompt: samples of one prompt are averaged first, and two policies are compared on their
difference at each prompt, so that what the prompts share cancels (a paired bootstrap).
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray
from scipy.stats import bootstrap

Array = NDArray[np.float64]


NUMBERS = 10_000_000
"""Resampled numbers in memory at once; the draws are the same for any."""


class Interval(NamedTuple):
    """An estimate with the ends of its confidence interval."""

    estimate: float
    low: float
    high: float


def win_rates(ours: Array, theirs: Array) -> Array:
    """Per prompt, the probability that a sample of ours scores above an independent one of theirs, ties counting one
    half: the U-statistic over the pairs of sample s and sample t with s different from t.

    Samples of one number share their random numbers (best-of-N even looks at the very sample it is compared with), so
    such a pair is not one of independent samples. With one sample a side there is no other pair: then one of the
    policies must be without randomness, or the result is biased.

    Args:
        ours, theirs: rewards [prompts, samples].
    Returns:
        [prompts], each in [0, 1]; 1/2 for a policy against itself.
    """
    above = (ours[:, :, None] > theirs[:, None, :]) + 0.5 * (ours[:, :, None] == theirs[:, None, :])
    samples = ours.shape[1]
    counted = ~np.eye(samples, dtype=bool) if samples > 1 else np.ones((1, 1), dtype=bool)
    return np.asarray(above[:, counted].mean(axis=1), dtype=np.float64)


def interval(values: Array, *, confidence: float, resamples: int, seed: int) -> Interval:
    """The mean of one value a prompt with its BCa bootstrap interval (Efron, 1987).

    Equal seeds draw equal resamples. With one prompt, or values that are all equal but for rounding, the interval is
    the estimate itself: the data say nothing about its spread.
    """
    mean = float(values.mean())
    if len(values) < 2 or np.ptp(values) <= 1e-12 * np.abs(values).max():
        return Interval(mean, mean, mean)
    found = bootstrap(
        (values,),
        np.mean,
        confidence_level=confidence,
        n_resamples=resamples,
        batch=max(1, NUMBERS // len(values)),
        method="BCa",
        rng=np.random.default_rng(seed),
    ).confidence_interval
    return Interval(mean, float(found.low), float(found.high))


def accuracy(chosen: Array, rejected: Array) -> Array:
    """Per pair, 1 where the chosen answer scores higher, 1/2 on a tie, else 0."""
    return np.asarray((chosen > rejected) + 0.5 * (chosen == rejected), dtype=np.float64)
