"""How well scores order held-out pairs, beside the rule that the answer with more characters wins."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from registry.methods.comparison import accuracy, interval
from registry.rows import Pair


def pair_accuracy(scores: Sequence[Sequence[float]], pairs: Sequence[Pair], *, seed: int) -> dict[str, float]:
    """Metrics `test/...` of the scores `(chosen, rejected)` of each pair: accuracy, the length rule's, and their
    difference, with 95 % bootstrap intervals over pairs."""
    chosen, rejected = np.array(scores, dtype=float).T
    lengths = np.array([[len(p.chosen), len(p.rejected)] for p in pairs], dtype=float)
    right = accuracy(chosen, rejected)
    longer = accuracy(lengths[:, 0], lengths[:, 1])
    found = {"test/pairs": float(len(pairs)), "test/mean_margin": float((chosen - rejected).mean())}
    return (
        found
        | spread("test/accuracy", right, seed=seed)
        | spread("test/length_baseline", longer, seed=seed)
        | spread("test/accuracy_minus_length_baseline", right - longer, seed=seed)
    )


def spread(name: str, values: NDArray[np.float64], *, seed: int) -> dict[str, float]:
    """The mean of one value a row with the ends of its 95 % interval, as three metrics."""
    measured = interval(values, confidence=0.95, resamples=2000, seed=seed)
    return {name: measured.estimate, f"{name}_low": measured.low, f"{name}_high": measured.high}
