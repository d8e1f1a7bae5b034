"""CARDS: which segments of an answer are accepted (Li et al., Cascade Reward Sampling, arXiv 2406.16306).

A segment ends where the model is uncertain of the next token, and is accepted with probability min(1, e^{(r - tau_t) / beta}),
r the reward of the answer up to it. The threshold tau_t rises with the t of at most T tokens from r_0 to the target r*.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor


def threshold(tokens: int, most: int, prompt_reward: float, target: float, alpha: float) -> float:
    """tau_t = min(r*, r_0 + t / T (r* - r_0)) with r_0 = (1 - alpha) r(x) + alpha r*, r(x) the reward of the prompt alone.
    Where the prompt alone is above the target, the target."""
    start = (1 - alpha) * prompt_reward + alpha * target
    return min(target, start + tokens / most * (target - start))


def acceptance(reward: float, threshold: float, beta: float) -> float:
    """min(1, e^{(r - tau) / beta})"""
    return math.exp(min(0.0, (reward - threshold) / beta))


def entropy(logits: Tensor) -> Tensor:
    """Of each distribution [...] of logits [..., vocabulary], in nats."""
    log_probs = torch.log_softmax(logits.float(), dim=-1)
    found: Tensor = torch.special.entr(log_probs.exp()).sum(-1)
    return found
