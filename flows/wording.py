"""Numbers as a person reads them: estimates with their intervals, divergences with their estimators, durations."""

from __future__ import annotations

import csv
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

ESTIMATORS = {
    "rao_blackwell": "token by token",
    "best_of_n": "for best-of-n",
    "point_mass": "of one answer",
    "bound": "at most",
}
"""How a policy's divergence is known, by the names of `Evaluation.kl`."""


def spread(row: Mapping[str, Any], name: str, digits: int = 3) -> str:
    """`0.412 [0.350, 0.471]`."""
    return f"{number(row[name], digits)} {ends(row[f'{name}_low'], row[f'{name}_high'], digits)}"


def ends(low: float, high: float, digits: int = 3) -> str:
    """`[0.350, 0.471]`."""
    return f"[{number(low, digits)}, {number(high, digits)}]"


def number(value: float, digits: int = 3) -> str:
    """`-0.412`; what is rounded to nothing has no sign."""
    return f"{round(value, digits) + 0.0:.{digits}f}"


def divergence(found: tuple[str, Mapping[str, float]] | None) -> str:
    """`1.234`, `<= 0.636` where it is a bound, `31.2 (one answer)` of a policy without randomness, `-` where it is not known."""
    if found is None:
        return "-"
    name, interval = found
    text = number(interval["estimate"])
    return {"bound": f"<= {text}", "point_mass": f"{text} (one answer)"}.get(name, text)


def p_value(p: float) -> str:
    """`p = 0.012`, `p < 0.001`."""
    return "p < 0.001" if p < 0.001 else f"p = {p:.3f}"


def count(value: float) -> str:
    """A number of things, or so many of them on average: `1,234`, `56.7`."""
    return f"{value:,.0f}" if value >= 1000 or value == int(value) else f"{value:.1f}"


def measured(metrics: Mapping[str, float]) -> str:
    """`pairs 126, prompts 64, train/last_loss 0.4625`."""
    return ", ".join(f"{name} {_value(value)}" for name, value in metrics.items())


def _value(value: float) -> str:
    whole = abs(value) >= 1000 or value == int(value) if math.isfinite(value) else False
    return f"{value:,.0f}" if whole else f"{value:.4g}"


def duration(seconds: float) -> str:
    """`0.031 s`, `12.3 s`, `4.5 min`, `2.1 h`."""
    if seconds < 1:
        return f"{seconds:.3f} s"
    if seconds < 100:
        return f"{seconds:.1f} s"
    return f"{seconds / 60:.1f} min" if seconds < 6000 else f"{seconds / 3600:.1f} h"


def write_csv(path: Path, rows: Sequence[Mapping[str, Any]]) -> None:
    """The rows under all the columns that any of them has."""
    columns = list(dict.fromkeys(key for row in rows for key in row))
    with path.open("w", encoding="utf-8", newline="") as file:
        writer = csv.DictWriter(file, columns)
        writer.writeheader()
        writer.writerows(rows)
