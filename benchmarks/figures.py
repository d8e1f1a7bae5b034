"""One row of the benchmark's table: two sides measured alternately in one run, or one side against a bound."""

from __future__ import annotations

import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True)
class Figure:
    """`target` bounds `ratio` where there is a baseline and `ours` where there is none. `ours` and `baseline` are
    medians, `ratio` is the median of the repeats' ratios and `spread` the least and greatest of what the target bounds."""

    name: str
    ours: float
    baseline: float | None
    unit: str
    ratio: float | None
    target: float
    higher_is_better: bool
    reached: bool
    spread: tuple[float, float]


def against(
    name: str, pairs: Sequence[tuple[float, float]], unit: str, target: float, *, higher_is_better: bool = False
) -> Figure:
    """From `(ours, baseline)` of each repeat."""
    ratios = [ours / baseline for ours, baseline in pairs]
    ratio = statistics.median(ratios)
    reached = ratio >= target if higher_is_better else ratio <= target
    ours, baseline = (statistics.median(side) for side in zip(*pairs, strict=True))
    return Figure(name, ours, baseline, unit, ratio, target, higher_is_better, reached, (min(ratios), max(ratios)))


def bounded(name: str, values: Sequence[float], unit: str, target: float) -> Figure:
    """From one side's values, which are to be at most `target`."""
    ours = statistics.median(values)
    return Figure(name, ours, None, unit, None, target, False, ours <= target, (min(values), max(values)))


def alternately(ours: Callable[[], float], baseline: Callable[[], float], repeats: int) -> list[tuple[float, float]]:
    """Both sides in turn, after one turn of each that is not counted."""
    ours(), baseline()
    return [(ours(), baseline()) for _ in range(repeats)]


def seconds(command: Sequence[str], environment: Mapping[str, str], folder: Path) -> float:
    """The wall time of a command, which must succeed."""
    began = time.perf_counter()
    done = subprocess.run(command, env=environment, cwd=folder, capture_output=True, text=True)
    elapsed = time.perf_counter() - began
    if done.returncode:
        sys.exit(f"{' '.join(command)} ended with {done.returncode}:\n{done.stdout}{done.stderr}")
    return elapsed
