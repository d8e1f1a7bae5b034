"""Fronts and hypervolumes: rectangles by hand, cells of a grid counted, inclusion and exclusion, invariances."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from registry.methods.fronts import front, hypervolume, reference_point


def clouds(axes: int) -> st.SearchStrategy[list[tuple[int, ...]]]:
    """Points of a grid, some of them equal, some with a common coordinate, some outside the box above 0."""
    return st.lists(st.tuples(*[st.integers(-2, 5)] * axes), min_size=1, max_size=7)


BOTH = st.sampled_from([2, 3]).flatmap(clouds)


def volume(points, reference=None) -> float:
    array = np.array(points, dtype=float)
    return hypervolume(array, np.zeros(array.shape[1]) if reference is None else np.array(reference, dtype=float))


def test_a_front_is_what_no_other_point_dominates() -> None:
    # (1, 3) and (3, 1) trade; (1, 2) and (1, 1) are below (1, 3), the latter below all; (2, 2) trades with both.
    points = np.array([[1, 3], [3, 1], [1, 2], [2, 2], [1, 1]])
    assert front(points).tolist() == [True, True, False, True, False]


def test_equal_points_share_their_place() -> None:
    assert front(np.array([[2, 1], [2, 1], [1, 2], [0, 1], [0, 1]])).tolist() == [True, True, True, False, False]


@given(BOTH)
def test_every_point_off_the_front_is_below_one_on_it(points) -> None:
    array = np.array(points)
    on = front(array)
    assert on.any()
    for p in array[~on]:
        assert any((q >= p).all() and (q > p).any() for q in array[on])


@given(st.lists(st.integers(-3, 3), min_size=1, max_size=6))
def test_on_one_axis_the_front_is_the_best(values) -> None:
    assert front(np.array(values)[:, None]).tolist() == [v == max(values) for v in values]


@given(st.floats(0, 9), st.floats(0, 9), st.floats(0, 9), st.floats(-9, -1))
def test_the_volume_of_one_point_is_that_of_its_box(a, b, c, w) -> None:
    assert volume([(a, b)], (w, w / 2)) == pytest.approx((a - w) * (b - w / 2))
    assert volume([(a, b, c)], (w, w / 2, w)) == pytest.approx((a - w) * (b - w / 2) * (c - w))


def test_a_staircase_of_three_steps() -> None:
    # Columns 0-1, 1-2, 2-4 of heights 5, 3, 1.
    assert volume([(4, 1), (1, 5), (2, 3)]) == 5 + 3 + 2


def test_three_bars_along_the_axes_of_a_cube() -> None:
    # 1 x 1 x 3 each, all of them sharing one unit cube: 3 x 3 - 2.
    assert volume([(3, 1, 1), (1, 3, 1), (1, 1, 3)]) == 7


@given(BOTH)
def test_it_is_the_count_of_the_unit_cells_below_some_point(points) -> None:
    cells = itertools.product(range(5), repeat=len(points[0]))
    assert volume(points) == sum(
        any(all(x >= c + 1 for x, c in zip(p, cell, strict=True)) for p in points) for cell in cells
    )


@given(st.integers(2, 3), st.integers(0, 2**32 - 1))
def test_it_is_the_volume_of_the_union_of_boxes_by_inclusion_and_exclusion(axes, seed) -> None:
    points = np.random.default_rng(seed).normal(size=(5, axes))
    reference = np.full(axes, -1.0)
    expected = 0.0
    for size in range(1, 6):
        for some in itertools.combinations(points, size):
            expected -= (-1) ** size * np.prod(np.maximum(np.min(some, axis=0) - reference, 0))
    assert hypervolume(points, reference) == pytest.approx(expected)


@given(BOTH, st.data())
def test_a_dominated_point_adds_nothing_and_one_that_is_not_something(points, data) -> None:
    new = data.draw(st.tuples(*[st.integers(-2, 5)] * len(points[0])))
    dominated = any(all(x >= y for x, y in zip(p, new, strict=True)) for p in points)
    if dominated or min(new) <= 0:
        assert volume([*points, new]) == volume(points)
    else:
        assert volume([*points, new]) > volume(points)


@given(BOTH)
def test_the_front_has_all_of_the_volume(points) -> None:
    array = np.array(points)
    assert volume(array[front(array)]) == volume(array)


@given(BOTH, st.randoms())
def test_neither_the_order_of_the_points_nor_that_of_the_axes_matters(points, random) -> None:
    axes = list(range(len(points[0])))
    random.shuffle(axes)
    shuffled = random.sample(points, len(points))
    assert volume([[p[a] for a in axes] for p in shuffled]) == volume(points)


@given(BOTH, st.sampled_from([0.5, 3.0]))
def test_a_unit_scales_it_and_an_origin_is_free(points, scale) -> None:
    axes = len(points[0])
    moved = [[x * scale + 1 for x in p] for p in points]
    assert volume(moved, [1] * axes) == pytest.approx(scale**axes * volume(points))


@given(clouds(2), st.integers(1, 4))
def test_of_points_at_one_height_it_is_the_area_times_the_height(points, height) -> None:
    assert volume([(*p, height) for p in points]) == height * volume(points)


def test_no_points_dominate_nothing() -> None:
    assert hypervolume(np.empty((0, 2)), np.zeros(2)) == hypervolume(np.empty((0, 3)), np.zeros(3)) == 0


@pytest.mark.parametrize(
    ("points", "reference", "said"),
    [((4, 1), 1, r"\[4, 1\]"), ((4, 4), 4, r"\[4, 4\]"), ((4, 2), 3, r"\[3\]"), ((2,), 2, r"\[2\]")],
)
def test_other_dimensions_are_refused(points, reference, said) -> None:
    with pytest.raises(ValueError, match=said + ".* d = 2 or 3"):
        hypervolume(np.ones(points), np.zeros(reference))


def test_the_reference_point_is_a_tenth_of_the_range_below_the_worst_of_each_axis() -> None:
    points = np.array([[1.0, 5.0], [3.0, -5.0], [2.0, 0.0]])
    assert reference_point(points).tolist() == pytest.approx([0.8, -6.0])


@given(BOTH)
def test_every_point_is_above_the_reference_point_unless_an_axis_says_nothing(points) -> None:
    array = np.array(points, dtype=float)
    found = hypervolume(array, reference_point(array))
    assert (found > 0) == (np.ptp(array, axis=0) > 0).all()


def test_a_reference_point_of_nothing_is_refused() -> None:
    with pytest.raises(ValueError, match="there is none"):
        reference_point(np.empty((0, 2)))
