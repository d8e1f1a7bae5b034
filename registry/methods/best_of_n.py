"""Best-of-n exactly: the distribution of the answer chosen, its divergence from the reference, its Poisson sibling.

Best-of-n draws n answers of the reference and returns one of highest reward. All logarithms are natural.
"""

from __future__ import annotations

import math

import numpy as np
from numpy.typing import NDArray
from scipy.special import xlog1py

Array = NDArray[np.float64]


def best_of_n_pmf(probabilities: Array, rewards: Array, n: int) -> Array:
    """The probability that best-of-n returns each answer of a finite space (arXiv 2401.01879).

    A level of equal rewards has F^n - (F^-)^n, F and F^- the probabilities of a reward at most and below it, and is
    split in proportion to the reference, as when the first drawn of the best is returned.

    Args:
        probabilities: [answers], of the reference.
        rewards: [answers].
    Returns:
        [answers].
    Raises:
        ValueError: the probabilities do not sum to 1.
    """
    if not math.isclose(probabilities.sum(), 1):
        raise ValueError(f"the probabilities sum to {probabilities.sum():g}, not to 1")
    levels, level = np.unique(rewards, return_inverse=True)
    mass = np.bincount(level, probabilities, len(levels))
    reached = np.concatenate([[0.0], mass.cumsum()])
    # A level without mass is never chosen.
    ratio = np.divide(np.diff(reached**n), mass, out=np.zeros_like(mass), where=mass > 0)
    return np.asarray(probabilities * ratio[level], dtype=np.float64)


def kl_bound(n: int) -> float:
    """log n - (n - 1) / n: at least the divergence of best-of-n, and equal to it where no answer or reward repeats.

    Source: arXiv 2401.01879.
    """
    return math.log(n) - (n - 1) / n


def kl_estimate(epsilon: Array, n: int) -> Array:
    """What one prompt tells of the divergence of best-of-n, below `kl_bound` where answers repeat (arXiv 2401.01879).

    With q = (1 - epsilon)^n it is q (log n + (n - 1) log(1 - epsilon) - (n - 1) / n) + (1 - q) log((1 - q) / epsilon).

    Args:
        epsilon: the reference's probability of the answer chosen, of any shape, in [0, 1]. At 0, to which that of a
            long answer underflows, it is the bound.
    Returns:
        Of the shape of `epsilon`, in nats.
    """
    log_missed = xlog1py(n, -epsilon)
    missed, hit = np.exp(log_missed), -np.expm1(log_missed)
    ratio = np.divide(hit, epsilon, out=np.full_like(hit, n), where=epsilon > 0)
    return np.asarray(missed * kl_bound(n) + xlog1py((n - 1) * missed, -epsilon) + hit * np.log(ratio))


def best_of_poisson_density(u: Array, mu: float) -> Array:
    """(mu u + 1) e^{mu (u - 1)}: the density of the calibrated reward of the best of 1 + Poisson(mu) draws.

    Without ties; best-of-n has n u^{n-1}. Source: Best-of-Poisson, arXiv 2506.19248.
    """
    return (mu * u + 1) * np.exp(mu * (u - 1))
