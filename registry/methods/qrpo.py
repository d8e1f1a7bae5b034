"""QRPO: regression of a policy's log-ratio on the quantile of a reward, whose partition function is known.

Source: Matrenok, Moalla and Gulcehre, arXiv 2507.08068.
"""

from __future__ import annotations

import math

from torch import Tensor


def loss(quantiles: Tensor, log_ratios: Tensor, beta: float, log_z: float) -> Tensor:
    """(q - beta log Z - beta log(pi / pi_ref))^2 per row, which is zero in all rows at pi = pi_ref e^(q / beta) / Z.

    Args:
        quantiles: q in [0, 1], the share of the reference's rewards for the prompt that are at most this one [rows].
        log_ratios: log pi - log pi_ref in nats, summed over the response's tokens [rows].
        log_z: log of E_ref[e^(q / beta)].
    Returns:
        [rows].
    """
    return (quantiles - beta * log_z - beta * log_ratios) ** 2


def identity_log_partition(beta: float) -> float:
    """log Z = log(beta (e^(1 / beta) - 1)), for a quantile that is uniform on [0, 1] and not transformed further.

    The authors' code takes log beta + 1 / beta (their equation 11). That is too high by -log(1 - e^(-1 / beta)):
    4.5e-5 at beta = 0.1, 0.46 at beta = 1.
    """
    inverse = 1 / beta
    # e^(1 / beta) overflows below 0.0014; log beta + 1 / beta + log(1 - e^(-1 / beta)) cancels at large betas.
    return inverse + math.log(-math.expm1(-inverse) / inverse)
