"""The autoregressive reward model: a language model whose own log-probability of an answer is its reward."""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor


def preference_loss(chosen: Tensor, rejected: Tensor, beta: float) -> Tensor:
    """The Bradley-Terry loss of r(x, y) = sum over t of log pi_r(y_t | x, y_<t): -log sigmoid(beta (r_w - r_l)).

    It is DPO without the reference policy. The sums are not divided by length, so that a longer answer starts with a
    lower reward, and each must hold the end-of-sequence token: pi_r can reward stopping in no other way.

    Args:
        chosen, rejected: log-probabilities in nats, summed over the answer's tokens [pairs].
        beta: the training beta, not the one that decoding divides by.
    Returns:
        [pairs].
    Source: GenARM (arXiv 2410.08193), training objective.
    """
    return -F.logsigmoid(beta * (chosen - rejected))
