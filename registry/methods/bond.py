"""J-BOND: distil best-of-2 of a slowly moving anchor into the policy, by both directions of the KL divergence.

Source: Sessa et al., arXiv 2407.14622, algorithm 2. Each row is one prompt with one sample of the policy and two of
the anchor. Log-probabilities are in nats, summed over a response's tokens.
"""

from __future__ import annotations

import math
from collections.abc import Iterable

import torch
from torch import Tensor


def backward_reward(reward: Tensor, anchor_rewards: Tensor) -> Tensor:
    """-log 16 where the policy's sample scores below both of the anchor's, else 0: a stand-in for log p.

    p is the probability that an anchor sample scores no higher. Both score higher with probability (1 - p)^2, and
    -log 16 (1 - p)^2 meets log p at the median (-log 2) and at the top (0), while it stays bounded at the bottom.

    Args:
        reward: of the policy's sample [rows].
        anchor_rewards: [rows, 2].
    Returns:
        [rows].
    """
    return torch.zeros_like(reward).masked_fill(reward < anchor_rewards.amin(1), -math.log(16))


def leave_one_out(values: Tensor, among: Tensor | None = None) -> Tensor:
    """For each row the mean of the other rows [rows], 0 for a row alone; the others are all rows of `among` but itself
    where the values are only some of them.

    A row's baseline must not depend on its own sample, or the policy gradient is biased.
    """
    every = values if among is None else among
    return (every.sum() - values) / max(len(every) - 1, 1)


def loss(
    log_prob: Tensor,
    anchor_log_prob: Tensor,
    best_anchor_log_prob: Tensor,
    advantage: Tensor,
    *,
    mix: float,
    kl_weight: float,
) -> Tensor:
    """(1 - mix) forward + mix backward + kl_weight KL(policy || anchor), each right in its expected gradient.

    Forward is the negative log-likelihood of the better anchor sample; the others are policy-gradient surrogates,
    whose values mean nothing. `kl_weight` is the whole weight of the KL term. In the paper's algorithm it enters
    twice, in the return of the backward part (reward minus log pi / pi_anchor) and by gamma: kl_weight = mix + gamma. Its
    gradient is estimated here without a baseline: right on average, and of more variance than inside that return.

    Args:
        log_prob: the policy's, of its own sample [rows].
        anchor_log_prob: the anchor's, of that sample [rows].
        best_anchor_log_prob: the policy's, of the anchor sample of higher reward [rows].
        advantage: `backward_reward` less a baseline that does not depend on the row's own sample (`leave_one_out`)
            [rows].
        mix: 0 is forward only, 1 backward only.
    Returns:
        [rows].
    """
    forward = -best_anchor_log_prob
    backward = -advantage.detach() * log_prob
    divergence = (log_prob - anchor_log_prob).detach() * log_prob
    return (1 - mix) * forward + mix * backward + kl_weight * divergence


@torch.no_grad()
def moving_average(anchor: Iterable[Tensor], policy: Iterable[Tensor], rate: float) -> None:
    """Move the anchor's parameters in place: anchor = (1 - rate) anchor + rate policy; the paper's rate is 0.02.

    Keep the anchor in float32: in bfloat16 such a step is mostly rounded away.
    """
    for old, new in zip(anchor, policy, strict=True):
        old.lerp_(new.to(old), rate)
