"""Which texts are read in one pass: those of like lengths together, and on a processor only as many as it reads fast."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from typing import Any

from registry.methods.footprint import at_once


def batches(widths: Sequence[int], answers: Sequence[int], most: int, model: Any) -> Iterator[list[int]]:
    """Numbers of rows that together have `most` answers at most, and no more positions, padding included, than the model reads
    at once; or of one row alone. Every row comes once, the wide ones first."""
    positions = math.inf if model.device.type == "cuda" else at_once(_inner(model.config.get_text_config()))
    chosen: list[int] = []
    held = 0
    for i in sorted(range(len(widths)), key=lambda i: -widths[i]):
        if chosen and (held + answers[i] > most or (len(chosen) + 1) * widths[chosen[0]] > positions):
            yield chosen
            chosen, held = [], 0
        chosen.append(i)
        held += answers[i]
    if chosen:
        yield chosen


def _inner(config: Any) -> int:
    """The width of the feed-forward part, the widest where layers differ."""
    found = getattr(config, "intermediate_size", None) or getattr(config, "n_inner", None) or 4 * config.hidden_size
    return max(found) if isinstance(found, list | tuple) else int(found)
