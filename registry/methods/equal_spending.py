"""Policies at equal spending: how many draws each can have for what one answer of the dearest costs.

A policy that looks at more text for each answer is compared with one that may answer more often and keep its best answer
(`best_of_n.expected_best` is what that is worth).
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

Array = NDArray[np.float64]

ROUNDING = 1e-9
"""Costs are quotients of counts: four times a third of a count is to be that count and a third, four thirds of it no more."""


def affordable_draws(costs: Array, draws: Array, fixed: Array | float = 0.0) -> NDArray[np.int64]:
    """Of each policy the most draws that cost no more than one answer of the dearest:
    floor((max(c) - f_i) / ((c_i - f_i) / d_i)).

    The dearest policy has the draws that its own answer takes, and every other at least as many as its answer takes.

    Args:
        costs: [policies], what an answer costs, all of its draws together: draws, tokens or forward positions.
        draws: [policies], how many draws an answer takes: n of best-of-n, else 1.
        fixed: [policies], what of a cost is paid once however many draws are made: positions of the prompt.
    Returns:
        [policies], each at least its `draws`.
    Raises:
        ValueError: a draw costs nothing, so that no number of draws costs as much as another's answer.
    """
    each = (costs - fixed) / draws
    if each.min() <= 0:
        raise ValueError(f"each draw must cost something; one costs {each.min():g}")
    return np.asarray(np.floor((costs.max() - fixed) / each * (1 + ROUNDING)), dtype=np.int64)
