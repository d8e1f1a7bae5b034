"""Best-of-n: what it is worth for every n, from one set of draws, and how far it is from its reference."""

from __future__ import annotations

import math

import numpy as np
from numpy.typing import NDArray
from scipy.special import xlog1py

Array = NDArray[np.float64]


def expected_best(guide: Array, judged: Array, n: int) -> Array:
    """What the answer that `guide` chooses among n draws is worth on average: the mean over all ways to choose n of the
    draws at hand, which is unbiased for n fresh ones.

    With the M draws in ascending order of `guide`, the i-th is the best of C(i - 1, n - 1) of C(M, n) subsets. Of draws
    that are equal the first one is chosen.

    Args:
        guide, judged: rewards [prompts, M] of the same draws, by the reward that chooses and the one that judges.
    Returns:
        [prompts].
    Raises:
        ValueError: n is not between 1 and M.
    """
    draws = guide.shape[1]
    if not 1 <= n <= draws:
        raise ValueError(f"n is {n}; it must be at least 1 and at most the {draws} draws")
    order = np.argsort(guide[:, ::-1], axis=1, kind="stable")
    ascending = np.take_along_axis(judged[:, ::-1], order, axis=1)
    of_all = math.comb(draws, n)
    weights = np.array([math.comb(i, n - 1) / of_all for i in range(draws)])
    return np.asarray(ascending @ weights)


def kl_bound(n: int) -> float:
    """log n - (n - 1) / n: at least the divergence of best-of-n, and equal to it where no answer or reward repeats.

    Source: arXiv 2401.01879.
    """
    return math.log(n) - (n - 1) / n


def kl_estimate(epsilon: Array, n: int) -> Array:
    """What one choice tells of the divergence of best-of-n, below `kl_bound` where answers or rewards repeat (arXiv 2401.01879).

    With q = (1 - epsilon)^n it is q (log n + (n - 1) log(1 - epsilon) - (n - 1) / n) + (1 - q) log((1 - q) / epsilon). Among draws
    of one reward the choice is by chance, so that answers of one reward are one outcome. The mean over choices is at least the
    divergence and at most the bound.

    Args:
        epsilon: the reference's probability of an answer with the reward of the one chosen, of any shape, in [0, 1]. At 0, to
            which that of a long answer underflows, it is the bound.
    Returns:
        Of the shape of `epsilon`, in nats.
    """
    log_missed = xlog1py(n, -epsilon)
    missed, hit = np.exp(log_missed), -np.expm1(log_missed)
    ratio = np.divide(hit, epsilon, out=np.full_like(hit, n), where=epsilon > 0)
    return np.asarray(missed * kl_bound(n) + xlog1py((n - 1) * missed, -epsilon) + hit * np.log(ratio))
