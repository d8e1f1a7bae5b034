"""A transform of the spec as a function on calibrated rewards, and its exact log-partition."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
from numpy.typing import NDArray

from registry.methods import transforms
from registry.methods.calibration import smoothed
from specs.calibration import ForBestOfN, ForWorstOfN, Logarithm, Transform
from specs.problems import UserError

Array = NDArray[np.float64]


def transformation(transform: Transform, beta: float, rollouts: int) -> Callable[[Array], Array]:
    """Phi for rewards calibrated on `rollouts` rollouts. The fixed points depend on `beta`, the weight of the KL divergence."""
    match transform:
        case ForBestOfN(form="exponential", t=t):
            return lambda u: transforms.best_of_n_exponential(u, t)
        case ForWorstOfN(form="exponential", t=t):
            return lambda u: transforms.worst_of_n_exponential(u, t)
        case ForBestOfN(n=n):
            return _on_grid(lambda: transforms.best_of_n_fixed_point(n, beta))
        case ForWorstOfN(n=n):
            return _on_grid(lambda: transforms.worst_of_n_fixed_point(n, beta))
        case Logarithm():
            return lambda u: np.log(smoothed(u, rollouts))
        case _:
            return lambda u: u


def _on_grid(fixed_point: Callable[[], Array]) -> Callable[[Array], Array]:
    try:
        values = fixed_point()
    except ValueError as error:  # of a `beta` of 0, or one so small that nothing is to be found
        raise UserError(f"`transform`: {error}; raise `beta` or take `form: exponential`") from error
    grid = np.linspace(0, 1, len(values))
    return lambda u: np.interp(u, grid, values)


def log_partition(transform: Transform, beta: float, rollouts: int) -> float:
    """log E[e^{Phi(u) / beta}] over the ranks 0, 1/M, ..., 1 that a fresh draw of the reference takes with equal probability."""
    ranks = np.arange(rollouts + 1) / rollouts
    values = transformation(transform, beta, rollouts)(ranks) / beta
    highest = values.max()
    return float(highest + np.log(np.exp(values - highest).mean()))
