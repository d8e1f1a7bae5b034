"""A transform of the spec as a function on calibrated rewards, and its log-partition at each prompt."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np
from numpy.typing import NDArray

from registry.methods import transforms
from registry.methods.calibration import self_excluded, smoothed
from registry.methods.qrpo import log_partition
from specs.calibration import ForBestOfN, ForWorstOfN, Logarithm, Transform
from specs.problems import UserError

Array = NDArray[np.float64]


def transformation(transform: Transform, beta: float, rollouts: int) -> Callable[[Array], Array]:
    """Phi for rewards calibrated on `rollouts` rollouts. The fixed points depend on `beta`, the weight of the KL divergence."""
    match transform:
        case ForBestOfN(t=float(t)):
            return lambda u: transforms.best_of_n_exponential(u, t)
        case ForWorstOfN(t=float(t)):
            return lambda u: transforms.worst_of_n_exponential(u, t)
        case ForBestOfN(n=int(n)):
            return _on_grid(lambda: transforms.best_of_n_fixed_point(n, beta))
        case ForWorstOfN(n=int(n)):
            return _on_grid(lambda: transforms.worst_of_n_fixed_point(n, beta))
        case Logarithm():
            return lambda u: transforms.log(smoothed(u, rollouts))
        case _:
            return lambda u: u


def _on_grid(fixed_point: Callable[[], Array]) -> Callable[[Array], Array]:
    try:
        values = fixed_point()
    except ValueError as error:  # of a `beta` of 0, or one so small that nothing is to be found
        raise UserError(f"`transform`: {error}; raise `beta`, or give `t` in place of `n`") from error
    grid = np.linspace(0, 1, len(values))
    return lambda u: np.interp(u, grid, values)


def log_partitions(transform: Transform, beta: float, rollouts: Sequence[Array]) -> list[float]:
    """log E_ref[e^{Phi(u) / beta}] at each prompt, from the rewards [M] of its rollouts, each ranked among the others."""
    phi = transformation(transform, beta, len(rollouts[0]) - 1)
    return [log_partition(phi(self_excluded(row)), beta) for row in rollouts]
