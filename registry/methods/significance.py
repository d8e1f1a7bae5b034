"""Whether a difference between two policies is more than chance, and how small a one a study could have seen.

All speak of one difference a prompt, the samples of a prompt averaged first. An interval says how large a difference
is; the p-value is for counting findings, and where there are many comparisons `holm` keeps the count honest.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray
from scipy.optimize import brentq
from scipy.stats import nct, permutation_test
from scipy.stats import t as student

from registry.methods.comparison import NUMBERS

Array = NDArray[np.float64]

FEWEST = 10
"""Prompts below which p-values of the permutation test are so few that it finds less than a t test does."""


def permutation_p(differences: Array, *, resamples: int, seed: int) -> float:
    """The p-value of a mean this far from 0, either way, if at each prompt the difference had been as likely to have the
    other sign, as where the two policies are one: the paired permutation test (Fisher, 1935).

    Of all 2^n choices of signs where these are no more than `resamples`, exactly; else of that many draws with the data as found
    counted among them, so that it is 1 / (resamples + 1) at least and never 0 (Phipson and Smyth, 2010). Means that differ
    by rounding alone are equal. Where all differences are 0 it is 1, and with one prompt too.

    Args:
        differences: [prompts].
        seed: of the draws.
    """
    largest = np.abs(differences).max()
    if len(differences) < 2 or largest == 0:
        return 1.0

    def distance(x: Array, axis: int) -> Array:
        return np.asarray(np.round(np.abs((x / largest).mean(axis=axis)), 12))

    found = permutation_test(
        (differences,),
        distance,
        permutation_type="samples",
        alternative="greater",
        n_resamples=resamples,
        batch=max(1, NUMBERS // len(differences)),
        rng=np.random.default_rng(seed),
    )
    return float(found.pvalue)


def draws_for(comparisons: int, *, resamples: int) -> int:
    """Draws of signs for each of so many comparisons: `resamples`, and so many that the smallest p-value which `permutation_p`
    can give stands at 1/400 at most after `holm`. With a fixed number nothing among many policies could ever be told apart."""
    return max(resamples, 400 * comparisons)


def holm(p_values: Sequence[float]) -> list[float]:
    """Each p-value as it stands among all of them (Holm, 1979): calling significant what is at most alpha errs anywhere
    among them with probability alpha at most, however they depend on each other.

    Of m in ascending order, the i-th (from 0) times m - i, but no less than the ones before it and no more than 1.

    Returns:
        The adjusted p-values, in the order given.
    """
    order = np.argsort(p_values, kind="stable")
    adjusted = np.empty(len(order))
    steps = np.asarray(p_values, dtype=np.float64)[order] * np.arange(len(order), 0, -1)
    adjusted[order] = np.minimum(np.maximum.accumulate(steps), 1)
    return adjusted.tolist()


def can_tell(prompts: int, *, confidence: float) -> bool:
    """Whether so many prompts can ever tell a difference from chance: of fewer even one sign at all of them has a p-value,
    2 / 2^n, above 1 - `confidence`, and intervals are too narrow by far. It takes 6 at 95 %."""
    return 2.0 ** (1 - prompts) <= 1 - confidence


def minimum_detectable_effect(differences: Array, *, confidence: float, power: float = 0.8) -> float:
    """The mean difference that a study of as many such prompts finds significant with probability `power`: as the paired t test
    does, of differences taken as normal with the standard deviation s (of P - 1) that these have, d s / sqrt(P) with d the
    noncentrality at which its power is that. Where none was found, one of this size was missed with probability 1 - `power`.
    The permutation test finds as much from `FEWEST` prompts on.

    Args:
        differences: [P].
    Returns:
        In the units of the differences; 0 where they are all equal.
    Raises:
        ValueError: there are fewer than two prompts, which tell nothing of the spread.
    """
    if len(differences) < 2:
        raise ValueError(f"the spread of differences takes two prompts at least; there are {len(differences)}")
    freedom = len(differences) - 1
    bar = float(student.ppf((1 + confidence) / 2, freedom))
    shift = brentq(lambda d: float(nct.sf(bar, freedom, d)) - power, 0.0, bar + 20)
    return float(shift * differences.std(ddof=1) / len(differences) ** 0.5)
