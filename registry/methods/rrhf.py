"""RRHF: order the length-normalised log-probabilities of a query's candidates as their rewards, and fit the best one.

Source: Yuan et al., arXiv 2304.05302. The losses are per query and take any number of queries at once; a candidate
that only fills a row up is masked. Log-probabilities are in nats.
"""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor

Sft = Literal["sum", "mean", "official_code"]


def ranking_loss(scores: Tensor, rewards: Tensor, mask: Tensor) -> Tensor:
    """L_rank: the sum over ordered pairs r_i < r_j of max(0, p_i - p_j). Equal rewards make no pair.

    It is a sum and not a mean, as in the paper: its gradient grows with the number of pairs.

    Args:
        scores: p, log-probabilities divided by length [queries, candidates].
        rewards: r, the same shape.
        mask: bool, true for a real candidate, the same shape.
    Returns:
        [queries].
    """
    worse = (rewards[:, :, None] < rewards[:, None, :]) & mask[:, :, None] & mask[:, None, :]
    return torch.where(worse, (scores[:, :, None] - scores[:, None, :]).relu(), 0.0).sum((1, 2))


def best(rewards: Tensor, mask: Tensor) -> Tensor:
    """The index [queries] of each query's real candidate of highest reward, the first on a tie."""
    return rewards.masked_fill(~mask, -torch.inf).argmax(1)


def loss(
    log_probs: Tensor,
    lengths: Tensor,
    rewards: Tensor,
    mask: Tensor,
    rank_weight: float,
    sft: Sft,
    padded: Tensor | None = None,
) -> Tensor:
    """`rank_weight` L_rank + L_ft, where L_ft is the negative log-likelihood of the best candidate.

    `sft` says over what L_ft runs: "sum" adds the tokens of the response (the paper), "mean" averages over them, and
    "official_code" averages over the row as it was padded, prompt included, so that padding moves the balance of the
    two terms. The released code also divides its p_i by that width, for it overwrites its own mask, and thereby ranks
    by sums; that is not followed here.

    Args:
        log_probs: summed over the tokens of each response, end of sequence included [queries, candidates].
        lengths: tokens of each response, the same shape; of masked candidates any number.
        rewards, mask: as in `ranking_loss`; each query has a real candidate.
        rank_weight: 1 in the paper.
        padded: widths in tokens [queries], for "official_code".
    Returns:
        [queries].
    Raises:
        ValueError: "official_code" without widths.
    """
    chosen = best(rewards, mask)[:, None]
    tokens = {"sum": torch.ones_like(lengths[:, 0]), "mean": lengths.gather(1, chosen)[:, 0], "official_code": padded}
    divisor = tokens[sft]
    if divisor is None:
        raise ValueError("sft is official_code; it needs the padded widths")
    # A masked candidate may have no token, and a gradient of 0/0 would pass through the mask.
    ranking = ranking_loss(log_probs / lengths.clamp(min=1), rewards, mask)
    return rank_weight * ranking - log_probs.gather(1, chosen)[:, 0] / divisor
