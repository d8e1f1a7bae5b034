"""Whether a reward was followed for the wrong reason: by length, or away from what it stands for.

Each gives one number a prompt, so that the caller's bootstrap over prompts puts an interval on the mean.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray
from scipy.stats import rankdata

Array = NDArray[np.float64]


def length_bias(rewards: Array, lengths: Array) -> Array:
    """Spearman's rank correlation of reward and length among a prompt's samples, equal values sharing their mean rank, of each prompt
    that has one.

    Within a prompt, so that a prompt that asks for long answers and has good ones is no bias. A prompt at which all
    rewards or all lengths are equal (all were cut at the limit) has no order to agree with, and is left out.

    Args:
        rewards, lengths: [prompts, samples].
    Returns:
        [prompts that have one], each in [-1, 1]; above 0 where longer answers score higher.
    Raises:
        ValueError: there are fewer than two samples a prompt.
    """
    if rewards.shape[1] < 2:
        raise ValueError(f"a correlation within a prompt takes two samples at least; there are {rewards.shape[1]}")
    of_reward, of_length = (rankdata(values, axis=1) - (values.shape[1] + 1) / 2 for values in (rewards, lengths))
    shared = (of_reward * of_length).sum(axis=1)
    scale = np.sqrt((of_reward**2).sum(axis=1) * (of_length**2).sum(axis=1))
    return np.asarray(shared[scale > 0] / scale[scale > 0])


def divergence_of_gold(guide_gain: Array, gold_gain: Array, *, guide_reference: Array, gold_reference: Array) -> Array:
    """Per prompt, how much more was gained of the reward that guided than of gold, each in the reference policy's standard
    deviations: above 0 the guide was pleased at more than gold was, as where a reward is over-optimised (arXiv
    2210.10760).

    The deviations are known from the same prompts, so what each prompt tells of them is part of its number (delta method):
    the mean is that of the gains in deviations, and an interval over prompts holds the deviations' own error.

    Args:
        guide_gain, gold_gain: [prompts], the policy's reward less the reference's, by the guiding reward and by gold.
        guide_reference, gold_reference: [prompts, samples], the reference's rewards by each of the two.
    Returns:
        [prompts], in standard deviations.
    Raises:
        ValueError: a reward is the same for every answer of the reference, and so has no unit.
    """
    return _in_deviations(guide_gain, guide_reference) - _in_deviations(gold_gain, gold_reference)


def _in_deviations(gain: Array, reference: Array) -> Array:
    deviation = reference.std()
    if not deviation > 0:
        raise ValueError(f"the reference's rewards have deviation {deviation}; it must be positive")
    own = ((reference - reference.mean()) ** 2).mean(axis=1)
    return np.asarray(gain / deviation - gain.mean() / (2 * deviation**3) * (own - deviation**2))
