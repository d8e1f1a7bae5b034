"""Perplexity: how many equally likely tokens a model chooses among, on average over the tokens of answers.

Two figures go by this name in the papers. Of a policy's *own* answers under a reference model it says how usual they are (RRHF,
arXiv 2304.05302, with GPT-2); of *given* answers under the policy it says how well the policy models them (RAFT, arXiv 2304.06767).
A small one is no merit of itself: the first is smallest for greedy text, the second for a copy of the data.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from registry.methods.comparison import Interval, bca

Array = NDArray[np.float64]


def perplexity(log_probs: Array, tokens: Array, *, confidence: float, resamples: int, seed: int) -> Interval:
    """exp(-sum of log-probabilities / number of tokens), so that each token counts alike, with its BCa interval over prompts.

    Args:
        log_probs: [prompts], the sum over all tokens of the answers to each prompt, in nats; the prompt is context alone.
        tokens: [prompts], how many those are.
    """
    estimate = float(np.exp(-log_probs.sum() / tokens.sum()))
    each = log_probs / tokens
    if len(each) < 2 or np.ptp(each) <= 1e-12 * np.abs(each).max():
        return Interval(estimate, estimate, estimate)

    def rate(some: Array, many: Array, axis: int = -1) -> Array:
        return np.asarray(-some.sum(axis) / many.sum(axis))

    low, high = bca((log_probs, tokens), rate, confidence=confidence, resamples=resamples, seed=seed)
    return Interval(estimate, float(np.exp(low)), float(np.exp(high)))
