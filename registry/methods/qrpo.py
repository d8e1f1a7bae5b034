"""QRPO: regression of a policy's log-ratio on the quantile of a reward, whose partition function is known.

The paper takes the quantile for uniform, so that one Z holds for all prompts. Where rewards tie it is not: answers that
all tie have the quantile 1/2, and Z is e^{1 / (2 beta)}. So Z is of each prompt, from the rewards of its own rollouts.

Source: Matrenok, Moalla and Gulcehre, arXiv 2507.08068.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray
from scipy.special import logsumexp
from torch import Tensor


def loss(quantiles: Tensor, log_ratios: Tensor, beta: float, log_z: Tensor | float) -> Tensor:
    """(q - beta log Z - beta log(pi / pi_ref))^2 per row, which is zero in all rows at pi = pi_ref e^(q / beta) / Z.

    Args:
        quantiles: q, the calibrated reward or what a transform makes of it [rows].
        log_ratios: log pi - log pi_ref in nats, summed over the response's tokens [rows].
        log_z: log of E_ref[e^(q / beta)] at the row's prompt [rows], or one for all.
    Returns:
        [rows].
    """
    return (quantiles - beta * log_z - beta * log_ratios) ** 2


def log_partition(quantiles: NDArray[np.float64], beta: float) -> float:
    """log Z of one prompt: log mean_i e^(q_i / beta) over the reference's rollouts to it.

    With each q_i the rank of rollout i among the other M - 1 (`calibration.self_excluded`), the mean over rollouts is
    Z's expectation under a calibration of M - 1 rollouts without bias, whatever the ties: rollout i is a fresh answer to
    the others. Without ties q takes the values 0, 1 / (M - 1), ..., 1 once each, and nothing is random; with many
    rollouts Z is then beta (e^(1 / beta) - 1). The authors' code takes log beta + 1 / beta for its logarithm (their
    equation 11), which is too high by -log(1 - e^(-1 / beta)): 4.5e-5 at beta = 0.1, 0.46 at beta = 1.

    Args:
        quantiles: of the rollouts [M], transformed as those of the answers are.
    """
    return float(logsumexp(quantiles / beta) - np.log(len(quantiles)))
