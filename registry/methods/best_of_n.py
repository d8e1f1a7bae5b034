"""How far best-of-n is from its reference, whose n answers it draws to return one of highest reward.

It has a place among trained policies, whose divergence is measured, on an axis of nats: a policy at `beta` is compared
with the best-of-n of the same divergence. For that these are called by hand; no stage reports them.
"""

from __future__ import annotations

import math

import numpy as np
from numpy.typing import NDArray
from scipy.special import xlog1py

Array = NDArray[np.float64]


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
