"""Preference pairs out of scored responses."""

from __future__ import annotations

from collections.abc import Sequence


def pairs_by_reward(
    rewards: Sequence[float], texts: Sequence[str], *, at_most: int, min_gap: float
) -> list[tuple[int, int]]:
    """Indices `(chosen, rejected)`: best against worst, second best against second worst, and so on.

    Each response is in one pair at most; of equal rewards the first sampled counts as better. A pair whose rewards do not
    differ by more than `min_gap` ends the list, for those after it are closer still; one whose texts are the same is left out.
    """
    order = sorted(range(len(rewards)), key=lambda i: (-rewards[i], i))
    pairs: list[tuple[int, int]] = []
    for best, worst in zip(order[: len(order) // 2], reversed(order), strict=False):
        if len(pairs) == at_most or rewards[best] - rewards[worst] <= min_gap:
            break
        if texts[best] != texts[worst]:
            pairs.append((best, worst))
    return pairs
