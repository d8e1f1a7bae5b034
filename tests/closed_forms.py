"""Policies in closed form, which everything else is held against: as densities of the calibrated reward, over a finite space.

A policy is the density f of the calibrated reward u, Uniform(0, 1) under the reference; that of a transform Phi is
f = e^{Phi / beta} / Z, and its divergence and its win rates against the reference are integrals over [0, 1].

Phi and f are arrays over a uniform grid of [0, 1], both ends included, and log f is linear between its points. The
integrals of such an f and of f log f are exact, so e^{u / beta} costs no error however small beta is. A Phi of minus
infinity at u = 0 (the logarithm's) empties the first cell, which matters where beta is far above 1.
"""

from __future__ import annotations

import math
from collections.abc import Callable

import numpy as np
from numpy.typing import NDArray
from scipy.optimize import brentq
from scipy.special import exprel

Array = NDArray[np.float64]

# Where beta_for_kl looks.
LOWEST, HIGHEST = 1e-9, 1e6
# Stands for a density of 0, so that it has a logarithm.
LEAST = 1e-280
# Gauss-Legendre points in (-1, 1) and weights of a cell: [5, 1], to go with arrays over the cells.
INSIDE, WEIGHTS = (values[:, None] for values in np.polynomial.legendre.leggauss(5))


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


def best_of_poisson_density(u: Array, mu: float) -> Array:
    """(mu u + 1) e^{mu (u - 1)}: the density of the calibrated reward of the best of 1 + Poisson(mu) draws.

    Without ties; best-of-n has n u^{n-1}. Source: Best-of-Poisson, arXiv 2506.19248.
    """
    return (mu * u + 1) * np.exp(mu * (u - 1))


def log_partition(phi: Array, beta: float) -> float:
    """log Z = log int_0^1 e^{Phi(u) / beta} du, which for the identity is log(beta (e^{1 / beta} - 1))."""
    scaled = phi / beta
    top = scaled.max()
    return float(top + np.log(_masses(np.exp(scaled - top)).sum()))


def tilted(phi: Array, beta: float) -> Array:
    """f = e^{Phi / beta} / Z [points]: the density of u under the policy that maximises E Phi(u) - beta KL."""
    return np.exp(phi / beta - log_partition(phi, beta))


def kl(f: Array) -> float:
    """int_0^1 f log f du, in nats: the divergence of the policy from the reference, the same at each prompt."""
    logs = _logs(f)
    # Over a cell log f is distributed as an exponential law cut off at the step, down from the higher end.
    means = np.maximum(logs[1:], logs[:-1]) - 1 + 1 / exprel(np.abs(np.diff(logs)))
    return float(_masses(f) @ means)


def win_rate(f: Array) -> float:
    """int_0^1 u f du: how often a draw of the policy scores above one of the reference."""
    return best_of_n_win_rate(f, 1)


def best_of_n_win_rate(f: Array, n: int) -> float:
    """1 - n int_0^1 F(u)^n u^{n-1} du: how often the best of n draws scores above the reference's best of n."""
    ours, theirs, weights = _inside(f)
    return float(1 - n * (weights * ours**n * theirs ** (n - 1)).sum())


def worst_of_n_win_rate(f: Array, n: int) -> float:
    """n int_0^1 (1 - F(u))^n (1 - u)^{n-1} du: how often the worst of n draws scores above the reference's worst."""
    ours, theirs, weights = _inside(f)
    return float(n * (weights * (1 - ours) ** n * (1 - theirs) ** (n - 1)).sum())


def beta_for_kl(phi: Array | Callable[[float], Array], target: float) -> float:
    """The beta at which the policy of a transform is `target` nats from the reference.

    Args:
        phi: the transform over the grid, or for one that depends on beta (a fixed point) the function from beta to it.
    Raises:
        ValueError: no beta from 1e-9 to 1e6 does so.
    """

    def excess(log_beta: float) -> float:
        beta = float(np.exp(log_beta))
        return kl(tilted(phi(beta) if callable(phi) else phi, beta)) - target

    low, high = np.log(LOWEST), np.log(HIGHEST)
    if not excess(low) > 0 > excess(high):
        raise ValueError(f"no beta from {LOWEST:g} to {HIGHEST:g} puts this transform's policy at a KL of {target:g}")
    return float(np.exp(brentq(excess, low, high)))


def _logs(f: Array) -> Array:
    return np.log(np.maximum(f, LEAST))


def _masses(f: Array) -> Array:
    """The probability of each cell."""
    logs = _logs(f)
    heights = np.exp(np.maximum(logs[1:], logs[:-1]))
    return np.asarray(heights * exprel(-np.abs(np.diff(logs))) / (len(f) - 1), dtype=np.float64)


def _inside(f: Array) -> tuple[Array, Array, Array]:
    """F, u and the weights of the quadrature at the points inside the cells, to integrate what holds powers of F."""
    masses, step, cells = _masses(f), np.diff(_logs(f)), len(f) - 1
    x = (1 + INSIDE) / 2
    share = x * exprel(step * x) / exprel(step)
    return masses.cumsum() - masses * (1 - share), (np.arange(cells) + x) / cells, WEIGHTS / 2 / cells
