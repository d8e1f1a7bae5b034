"""Where the names of points in a figure go: beside their points, over no other name and no point."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import NamedTuple

DIRECTIONS = [
    (math.cos(turn * math.pi / 8), math.sin(turn * math.pi / 8)) for turn in (0, 8, 4, 12, 2, 6, 14, 10, 1, 15, 7, 9)
]
"""Right, left, above, below, and between them."""
DISTANCES = (6.0, 13.0, 22.0, 33.0, 46.0, 62.0)
MARKER = 4.0
"""Half of what a marker takes up."""


class Box(NamedTuple):
    left: float
    bottom: float
    right: float
    top: float

    def meets(self, other: Box) -> bool:
        apart = (
            self.right <= other.left or other.right <= self.left or self.top <= other.bottom or other.top <= self.bottom
        )
        return not apart

    def within(self, other: Box) -> bool:
        return (
            self.left >= other.left
            and self.right <= other.right
            and self.bottom >= other.bottom
            and self.top <= other.top
        )


def placed(
    points: Sequence[tuple[float, float]],
    widths: Sequence[float],
    height: float,
    inside: Box,
    avoided: Sequence[Box] = (),
) -> list[Box | None]:
    """A box for the name of each point, as near to it as is free; the first points choose first.

    Args:
        points: in the units of the drawing, y upwards.
        widths: of the names.
        height: of a name.
        inside: what no name may leave.
        avoided: where a name is put only if there is no other place.
    Returns:
        For each point the box; None where none is free within reach.
    """
    taken = [Box(x - MARKER, y - MARKER, x + MARKER, y + MARKER) for x, y in points]
    found: list[Box | None] = []
    for (x, y), width in zip(points, widths, strict=True):
        boxes = [_beside(x, y, distance, way, width, height) for distance in DISTANCES for way in DIRECTIONS]
        free = [b for b in boxes if b.within(inside) and not any(b.meets(other) for other in taken)]
        box = next((b for b in free if not any(b.meets(other) for other in avoided)), next(iter(free), None))
        found.append(box)
        taken += [box] if box else []
    return found


def _beside(x: float, y: float, distance: float, way: tuple[float, float], width: float, height: float) -> Box:
    """The box whose near side is so far from the point, in that direction."""
    shifts = [0.0 if abs(part) < 0.1 else math.copysign(0.5, part) for part in way]
    left = x + way[0] * distance + (shifts[0] - 0.5) * width
    bottom = y + way[1] * distance + (shifts[1] - 0.5) * height
    return Box(left, bottom, left + width, bottom + height)
