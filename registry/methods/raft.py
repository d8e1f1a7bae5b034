"""RAFT: which of a round's samples the policy is fine-tuned on.

Source: Dong et al., arXiv 2304.06767. Rewards are finite [prompts, samples]; `usable`, the same shape, is false for a
sample that must not be learnt from (empty or degenerate). What comes back are pairs (prompt, sample).
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

Array = NDArray[np.float64]


def best_of_each(rewards: Array, usable: NDArray[np.bool_]) -> list[tuple[int, int]]:
    """Local ranking (the paper's later versions): each prompt's usable sample of highest reward, the first on a tie.

    Only the order of rewards within a prompt matters. A prompt with nothing usable is skipped.
    """
    chosen = []
    for prompt, (row, kept) in enumerate(zip(rewards, usable, strict=True)):
        samples = np.flatnonzero(kept)
        if len(samples):
            chosen.append((prompt, int(samples[row[samples].argmax()])))
    return chosen


def best_of_all(rewards: Array, usable: NDArray[np.bool_], k: int) -> list[tuple[int, int]]:
    """Global ranking (the first version): the floor(b / k) usable samples of highest reward, best first.

    b counts all samples drawn, usable or not: a round that draws rubbish does not lower its own bar. Of equal rewards
    the one drawn first counts as higher. Rewards must be comparable across prompts.

    Raises:
        ValueError: k is below 1.
    """
    if k < 1:
        raise ValueError(f"k is {k}; one sample in k is kept, and k must be 1 or more")
    flat = rewards.ravel()
    samples = np.flatnonzero(usable)
    kept = samples[np.argsort(-flat[samples], kind="stable")][: flat.size // k]
    return [divmod(int(index), rewards.shape[1]) for index in kept]


def kl_penalised(rewards: Array, log_probs: Array, initial_log_probs: Array, beta: float) -> Array:
    """r - beta log(p / p_0), to rank by in place of r; it never enters the loss.

    Args:
        log_probs, initial_log_probs: of the sampling policy and of the one training began with, in nats, summed over
            the tokens of the response; the shape of `rewards`. In the first round they are equal, and beta is idle.
    """
    return rewards - beta * (log_probs - initial_log_probs)
