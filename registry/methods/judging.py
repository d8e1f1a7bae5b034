"""A judge's verdicts on pairs of answers: read strictly, and folded over the two orders in which a pair is shown.

Judges favour places (Zheng et al., 2023, arXiv 2306.05685, section 3.3), so each pair is shown in both orders and counts
with the mean of the two: a judge that looks at the place alone finds every pair a tie.
"""

from __future__ import annotations

import re
from typing import Literal, NamedTuple

import numpy as np
from numpy.typing import NDArray

Array = NDArray[np.float64]
Verdict = Literal["A", "B", "tie"]

FIRST_WINS: dict[Verdict, float] = {"A": 1.0, "tie": 0.5, "B": 0.0}
"""What a verdict is worth to the answer that is shown first, A."""

_VERDICTS: dict[str, Verdict] = {"A": "A", "B": "B", "C": "tie"}
_TOKEN = re.compile(r"(?<![\w\[])\[\[([ABC])\]\](?![\w\]])")


def verdict_of(reply: str) -> Verdict | None:
    """The verdict of a reply: its last `[[A]]`, `[[B]]` or `[[C]]` that stands alone, C being a tie (the form of MT-bench,
    Zheng et al., 2023, arXiv 2306.05685). None where there is none: a letter without brackets is no verdict."""
    found = _TOKEN.findall(reply)
    return _VERDICTS[found[-1]] if found else None


def sample_pairs(samples: int, pairs: int) -> list[tuple[int, int]]:
    """The numbers of our sample and of theirs in each of `pairs` pairs: s and s + 1, the last with the first. Samples of one
    number share their random numbers (`registry.methods.comparison.win_rates`).

    Raises:
        ValueError: there are fewer samples than pairs.
    """
    if pairs > samples:
        raise ValueError(f"{samples} samples make {samples} pairs, not {pairs}")
    return [(s, (s + 1) % samples) for s in range(pairs)]


class Folded(NamedTuple):
    """What verdicts come to. A pair counts if both of its orders have a verdict: one alone would carry the bias for a place
    that the two are to cancel."""

    wins: Array
    """[prompts with a pair that counts], in their order: the share of its pairs that is ours, in [0, 1]."""
    pairs: int
    """The pairs that count."""
    position_bias: float | None
    """The share of the verdicts on them that is for the answer shown first, ties one half: 1/2 is none, 1 is a judge that
    always takes the first. None where no pair counts."""
    agreement: float | None
    """The share of them on which both orders have the same outcome; None where no pair counts."""
    unparsable: int
    """Replies without a verdict."""


def fold(first_wins: Array) -> Folded:
    """Verdicts over both orders.

    Args:
        first_wins: [prompts, pairs, 2], what each verdict is worth to the answer shown first (`FIRST_WINS`), NaN where there
            is none. Ours is shown first in order 0, theirs in order 1.
    """
    ours = np.stack([first_wins[..., 0], 1 - first_wins[..., 1]], axis=-1)
    whole = ~np.isnan(ours).any(axis=-1)
    pairs = whole.sum(axis=1)
    sums = np.where(whole, ours.mean(axis=-1), 0.0).sum(axis=1)
    count = int(pairs.sum())
    return Folded(
        wins=sums[pairs > 0] / pairs[pairs > 0],
        pairs=count,
        position_bias=float(first_wins[whole].mean()) if count else None,
        agreement=float((ours[whole][:, 0] == ours[whole][:, 1]).mean()) if count else None,
        unparsable=int(np.isnan(first_wins).sum()),
    )
