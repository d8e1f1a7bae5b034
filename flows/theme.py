"""The report's colours in light and in dark, and the colour and marker by which a policy is known in every figure.

A figure is drawn in the light colours, and `themed` puts variables in their place, so that one drawing serves both.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import NamedTuple

LIGHT = {
    "page": "#ffffff", "panel": "#f6f8fa", "text": "#1f2328", "quiet": "#59636e", "line": "#d1d9e0", "link": "#0a58ca",
    "c0": "#0b57d0", "c1": "#b35900", "c2": "#187a34", "c3": "#8045dd", "c4": "#b83280", "c5": "#0f766d", "c6": "#7a4b00",
    "c7": "#c62828",
}  # fmt: skip
DARK = {
    "page": "#0d1117", "panel": "#161b22", "text": "#e6edf3", "quiet": "#9da7b1", "line": "#3d444d", "link": "#7ab8ff",
    "c0": "#79b8ff", "c1": "#ffa657", "c2": "#56d364", "c3": "#d2a8ff", "c4": "#ff9bce", "c5": "#3fd0c4", "c6": "#e3b341",
    "c7": "#ff8a80",
}  # fmt: skip
SERIES = [name for name in LIGHT if re.fullmatch(r"c\d", name)]
MARKERS = "osD^vP*X<>phd"
"""Markers with an inside, which may be filled or left empty."""


class Look(NamedTuple):
    """How a policy is drawn."""

    colour: str
    """One of `LIGHT`'s values."""
    marker: str


def looks(policies: Sequence[str]) -> dict[str, Look]:
    """No two of the first 104 policies look alike, and of the first 13 no two have one marker."""
    return {
        policy: Look(LIGHT[SERIES[number % len(SERIES)]], MARKERS[number % len(MARKERS)])
        for number, policy in enumerate(policies)
    }


def variables(scope: str = ":root") -> str:
    """The colours as CSS variables, dark ones where the reader's system prefers them."""
    light, dark = ("; ".join(f"--{name}: {value}" for name, value in theme.items()) for theme in (LIGHT, DARK))
    return f"{scope} {{ {light} }}\n@media (prefers-color-scheme: dark) {{ {scope} {{ {dark} }} }}\n"


def themed(drawing: str) -> str:
    """A drawing in light colours with a variable in the place of each; its light value serves where there is none."""
    names = {value: name for name, value in LIGHT.items()}
    return re.sub(
        r"#[0-9a-f]{6}\b",
        lambda found: f"var(--{names[found[0]]}, {found[0]})" if found[0] in names else found[0],
        drawing,
    )
