"""Whether a reward was followed for the wrong reason: by length, or away from what it stands for.

Each gives one number a prompt, so that the caller's bootstrap over prompts puts an interval on the mean.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray
from scipy.stats import rankdata

Array = NDArray[np.float64]


def length_bias(rewards: Array, lengths: Array) -> Array:
    """Per prompt, Spearman's rank correlation of reward and length among its samples, equal values sharing their mean rank.

    Within a prompt, so that a prompt that asks for long answers and has good ones is no bias. A prompt at which all
    rewards or all lengths are equal has no order to agree with, and counts as 0.

    Args:
        rewards, lengths: [prompts, samples].
    Returns:
        [prompts], each in [-1, 1]; above 0 where longer answers score higher.
    Raises:
        ValueError: there are fewer than two samples a prompt.
    """
    if rewards.shape[1] < 2:
        raise ValueError(f"a correlation within a prompt takes two samples at least; there are {rewards.shape[1]}")
    of_reward, of_length = (rankdata(values, axis=1) - (values.shape[1] + 1) / 2 for values in (rewards, lengths))
    shared = (of_reward * of_length).sum(axis=1)
    scale = np.sqrt((of_reward**2).sum(axis=1) * (of_length**2).sum(axis=1))
    return np.asarray(np.divide(shared, scale, out=np.zeros(len(shared)), where=scale > 0))


def divergence_of_gold(guide_gain: Array, gold_gain: Array, *, guide_deviation: float, gold_deviation: float) -> Array:
    """Per prompt, how much more was gained of the reward that guided than of gold, each in the reference policy's standard
    deviations: above 0 the guide was pleased at more than gold was, as where a reward is over-optimised (arXiv
    2210.10760).

    Args:
        guide_gain, gold_gain: [prompts], the policy's reward less the reference's, by the guiding reward and by gold.
        guide_deviation, gold_deviation: of the reference's rewards over all its answers, by each of the two.
    Returns:
        [prompts], in standard deviations.
    Raises:
        ValueError: a deviation is not positive: a reward that is the same for every answer has no unit.
    """
    if not (guide_deviation > 0 and gold_deviation > 0):
        raise ValueError(
            f"the reference's rewards have deviations {guide_deviation} (guide) and {gold_deviation} (gold); both must be positive"
        )
    return guide_gain / guide_deviation - gold_gain / gold_deviation
