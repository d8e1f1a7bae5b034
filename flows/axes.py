"""How the axis of a figure runs: evenly, logarithmically, or logarithmically from zero on; with round ticks apart from each other."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from matplotlib.ticker import FixedLocator, FuncFormatter, MaxNLocator, NullLocator


@dataclass(frozen=True)
class Scale:
    """How an axis runs."""

    label: str
    kind: str = "linear"
    """`linear`, `log`, or `asinh`: from 0 on, and logarithmic where values are large."""
    ticks: Sequence[float] = ()
    names: Mapping[float, str] = field(default_factory=dict)
    """Of ticks that are more than their number."""


FUNCTIONS: dict[str, tuple[Callable[[float], float], Callable[[float], float]]] = {
    "linear": (lambda v: v, lambda v: v),
    "log": (lambda v: math.log(max(v, 1e-300)), lambda v: math.exp(min(v, 700.0))),
    "asinh": (lambda v: math.asinh(2 * v), lambda v: math.sinh(v) / 2),
}


def run(
    axis: Any, set_scale: Callable[..., None], set_limits: Callable[..., None], scale: Scale, values: Sequence[float]
) -> None:
    """Makes an axis run as it should, a little beyond the values, with its ticks and its name."""
    forward, back = FUNCTIONS[scale.kind]
    low, high = forward(min(values)), forward(max(values))
    spare = 0.08 * (high - low) or 0.5
    if scale.kind != "linear":
        set_scale("function", functions=(np.vectorize(forward), np.vectorize(back)))
    set_limits(back(low - spare), back(high + spare))
    places = scale.ticks or ticks(scale.kind, back(low - spare), back(high + spare))
    axis.set_major_locator(FixedLocator(places) if len(places) else MaxNLocator(5))
    axis.set_minor_locator(NullLocator())
    if scale.kind != "linear" or scale.names:
        axis.set_major_formatter(FuncFormatter(lambda value, _: scale.names.get(value, f"{value:,.10g}")))
    axis.axes.grid(True)
    axis.set_label_text(scale.label)


def ticks(kind: str, low: float, high: float) -> list[float]:
    """Round numbers where a scale's own would be crowded at one end."""
    if kind == "linear":
        return []
    steps = [m * 10.0**e for e in range(-3, 10) for m in (1, 2, 5)]
    if kind == "log" and sum(low <= s <= high for s in steps) < 2:
        return [float(f"{v:.2g}") for v in np.geomspace(low, high, 5)[1:-1]]
    forward, kept = FUNCTIONS[kind][0], [0.0][: kind == "asinh"]
    for tick in steps:
        far = 0.13 * (forward(high) - forward(low))
        if low <= tick <= high and (not kept or forward(tick) - forward(kept[-1]) > far):
            kept.append(tick)
    return kept
