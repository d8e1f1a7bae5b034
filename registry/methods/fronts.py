"""Pareto fronts of policies under several rewards: who is dominated, and the volume that a set of them dominates.

A point is a policy's mean reward under each reward; larger is better on every axis. Volumes compare only under one
reference point and one scaling of the axes, so both belong into the record.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

Array = NDArray[np.float64]


def front(points: Array) -> NDArray[np.bool_]:
    """Which points no other one dominates: none is as good on every axis and better on one.

    Args:
        points: [n, d].
    Returns:
        [n]. Equal points are kept or dropped together.
    """
    dominated = [np.any((points >= p).all(axis=1) & (points > p).any(axis=1)) for p in points]
    return ~np.array(dominated, dtype=bool)


def hypervolume(points: Array, reference: Array) -> float:
    """The volume of all that lies above the reference point and below some point (Zitzler and Thiele, 1999), exactly.

    In the plane it is a staircase's area; in space the sum over the points, in descending order of the third axis, of the
    staircase of those down to it times the height to the next one. A point that is dominated, or not above the reference on every axis,
    adds nothing.

    Args:
        points: [n, d], d = 2 or 3.
        reference: [d].
    Returns:
        In the product of the axes' units; 0 without points.
    Raises:
        ValueError: d is neither 2 nor 3, or the reference has another one.
    """
    if points.ndim != 2 or points.shape[1] not in (2, 3) or reference.shape != points.shape[1:]:
        raise ValueError(
            f"points are {list(points.shape)} and the reference {list(reference.shape)}; they must be [n, d] and [d] "
            "with d = 2 or 3"
        )
    above = points[(points > reference).all(axis=1)] - reference
    if points.shape[1] == 2:
        return _area(above)
    above = above[np.argsort(-above[:, 2])]
    heights = -np.diff(above[:, 2], append=0.0)
    return float(sum(height * _area(above[: i + 1, :2]) for i, height in enumerate(heights) if height > 0))


def _area(points: Array) -> float:
    """Of the union of the rectangles from 0 to each point."""
    points = points[np.argsort(-points[:, 0])]
    widths = -np.diff(points[:, 0], append=0.0)
    return float(widths @ np.maximum.accumulate(points[:, 1]))


def reference_point(points: Array) -> Array:
    """The reference point of a table: on each axis the lowest of all its methods, less a tenth of their range.

    So the worst on an axis still counts a little there. An axis on which all are equal gives every volume 0.

    Args:
        points: [n, d], of every method that is compared, dominated ones too.
    Returns:
        [d].
    Raises:
        ValueError: there is no point.
    """
    if len(points) == 0:
        raise ValueError("the reference point is taken from the points that are compared; there is none")
    return np.asarray(points.min(axis=0) - np.ptp(points, axis=0) / 10)
