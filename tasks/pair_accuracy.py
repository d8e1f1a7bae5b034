"""How well scores order held-out pairs, beside the rule that the answer with more characters wins."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np
from numpy.typing import NDArray

from registry.methods.comparison import Interval, accuracy, interval, rate_interval
from registry.rows import Pair, Prompt

Scores = Sequence[Sequence[float]]
"""Of each pair `(chosen, rejected)`."""


def pair_accuracy(
    scores: Scores, pairs: Sequence[Pair], *, seed: int, before: Scores | None = None
) -> dict[str, float]:
    """Metrics `test/...` of the scores of each pair: accuracy, the length rule's, and their difference, as means over
    prompts of the share of a prompt's pairs, with 95 % bootstrap intervals over prompts: the pairs of one prompt are not
    independent. With the scores `before` training also their accuracy, and by how much it has risen on the same pairs."""
    chosen, rejected = np.array(scores, dtype=float).T
    lengths = np.array([[len(p.chosen), len(p.rejected)] for p in pairs], dtype=float)
    _, prompts = np.unique([Prompt(tuple(p.prompt)).id for p in pairs], return_inverse=True)
    right = _by_prompt(accuracy(chosen, rejected), prompts)
    longer = _by_prompt(accuracy(lengths[:, 0], lengths[:, 1]), prompts)
    found = {"test/pairs": float(len(pairs)), "test/mean_margin": float((chosen - rejected).mean())}
    if before is not None:
        at_first = _by_prompt(accuracy(*np.array(before, dtype=float).T), prompts)
        found |= spread("test/before/accuracy", at_first, seed=seed, of=rate_interval)
        found |= spread("test/accuracy_minus_before", right - at_first, seed=seed)
    return (
        found
        | spread("test/accuracy", right, seed=seed, of=rate_interval)
        | spread("test/length_baseline", longer, seed=seed, of=rate_interval)
        | spread("test/accuracy_minus_length_baseline", right - longer, seed=seed)
    )


def _by_prompt(values: NDArray[np.float64], prompts: NDArray[np.intp]) -> NDArray[np.float64]:
    return np.bincount(prompts, values) / np.bincount(prompts)


def spread(
    name: str, values: NDArray[np.float64], *, seed: int, of: Callable[..., Interval] = interval
) -> dict[str, float]:
    """The mean of one value a prompt with the ends of its 95 % interval, as three metrics."""
    measured = of(values, confidence=0.95, resamples=2000, seed=seed)
    return {name: measured.estimate, f"{name}_low": measured.low, f"{name}_high": measured.high}
