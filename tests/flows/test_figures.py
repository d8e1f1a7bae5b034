"""Figures: colours that can be read in light and in dark, policies that look the same everywhere, names that cover nothing."""

from __future__ import annotations

import re
from itertools import combinations, pairwise
from xml.etree import ElementTree

import pytest
from hypothesis import given
from hypothesis import strategies as st

from flows.axes import FUNCTIONS, Scale, ticks
from flows.drawing import Drawing
from flows.figures import CROWD, WIDTH, Curve, Point, curves, forest, glyph, scatter, training, uniformity
from flows.labels import MARKER, Box, placed
from flows.theme import DARK, LIGHT, SERIES, looks, variables

POLICIES = ("base", "sft", "bon[n=4]")
LOOKS = looks(POLICIES)
POINTS = [
    Point("base", 1.0, 2.0, LOOKS["base"], (0.5, 1.5), (1.5, 2.5)),
    Point("sft", 0.0, 3.0, LOOKS["sft"], None, (2.75, 3.25), on_front=True),
    Point("bon[n=4]", 4.0, 3.5, LOOKS["bon[n=4]"], None, (3.25, 3.75), "none", on_front=True),
]
PLAIN = Scale("KL", "asinh"), Scale("")


def luminance(colour: str) -> float:
    """WCAG 2.2, relative luminance."""
    parts = [int(colour[i : i + 2], 16) / 255 for i in (1, 3, 5)]
    linear = [p / 12.92 if p <= 0.04045 else ((p + 0.055) / 1.055) ** 2.4 for p in parts]
    return 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]


def contrast(one: str, other: str) -> float:
    low, high = sorted(map(luminance, (one, other)))
    return (high + 0.05) / (low + 0.05)


def texts(drawing: Drawing) -> set[str]:
    root = ElementTree.fromstring(drawing.standalone)
    return {"".join(e.itertext()).strip() for e in root.iter() if e.tag.endswith("}text")}


def test_contrast_is_measured_as_the_standard_measures_it() -> None:
    assert contrast("#000000", "#ffffff") == pytest.approx(21)
    assert contrast("#777777", "#ffffff") == pytest.approx(4.48, abs=0.005)


@pytest.mark.parametrize("theme", [LIGHT, DARK], ids=["light", "dark"])
def test_whatever_is_read_stands_out_from_its_ground(theme: dict[str, str]) -> None:
    for name in ("text", "quiet", "link", *SERIES):
        for ground in ("page", "panel"):
            assert contrast(theme[name], theme[ground]) >= 4.5, f"{name} on {ground}"
    assert LIGHT.keys() == DARK.keys()


def test_no_two_policies_look_alike_and_few_share_a_marker() -> None:
    many = looks([f"p{i}" for i in range(104)])
    assert len(set(many.values())) == 104
    assert len({look.marker for look in looks([f"p{i}" for i in range(13)]).values()}) == 13


def test_a_figure_has_the_themes_colours_and_no_others() -> None:
    drawings = [
        scatter(POINTS, "gold", PLAIN, "x", curve=Curve("best", [0, 1], [2, 3], LOOKS["base"])),
        forest(POINTS, "gold", "difference", "x"),
        curves([Curve("loss", [1, 2], [3, 2], LOOKS["sft"], ([2, 1], [4, 3]))], "loss", Scale("step"), "x"),
        uniformity([0.1, 0.2, 0.9], "ranks", "x"),
    ]
    for drawing in drawings:
        inline = str(drawing.inline)
        assert set(re.findall(r"var\(--(\w+), (#\w+)\)", inline)) <= set(LIGHT.items())
        assert not re.findall(r"#[0-9a-f]{3,6}\b|rgb", re.sub(r"var\([^)]*\)|url\([^)]*\)|href=\"[^\"]*\"", "", inline))
        assert variables("svg") in drawing.standalone
        assert all(value in drawing.standalone for value in DARK.values())
        ElementTree.fromstring(drawing.standalone)


def test_a_policy_keeps_its_colour_in_every_figure_and_in_the_legend() -> None:
    found = set()
    for drawing in (scatter(POINTS, "gold", PLAIN, "x"), forest(POINTS, "gold", "difference", "x")):
        (group,) = re.findall(r"<g><title>sft[^<]*</title>(.*?)</g></g>", str(drawing.inline))
        found |= set(re.findall(r"(?:fill|stroke): var\(--(\w+)", group))
    assert found == {"c1"}
    assert 'fill="var(--c1)"' in glyph(LOOKS["sft"])


def test_an_empty_marker_is_drawn_empty_and_one_of_a_bound_by_halves() -> None:
    fills = {}
    for fill in ("full", "none", "left"):
        point = Point("sft", 1.0, 1.0, LOOKS["sft"], fill=fill)
        (group,) = re.findall(r"<g><title>sft</title>(.*?)</g></g>", str(scatter([point], "t", PLAIN, "x").inline))
        fills[fill] = set(re.findall(r"fill: var\(--(\w+)", group))
    assert fills == {"full": {"c1"}, "none": {"page"}, "left": {"page", "c1"}}


def test_figures_name_what_they_show_and_are_drawn_alike_each_time() -> None:
    drawing = scatter(POINTS, "gold <held out>", PLAIN, "Mean & more.")
    assert {"gold <held out>", "KL", *POLICIES} <= texts(drawing)
    assert 'aria-label="gold &lt;held out&gt;. Mean &amp; more."' in drawing.inline
    assert scatter(POINTS, "gold <held out>", PLAIN, "Mean & more.") == drawing
    assert "base: 2.000 [1.500, 2.500]" in drawing.inline, "the numbers are told where a pointer rests"
    assert {"difference", *POLICIES} <= texts(forest(POINTS, "gold", "difference", "x"))
    rows = [{"step": 1, "loss": 2.0}, {"step": 2, "loss": 1.0, "accuracy": 0.5}]
    assert [d.title for d in training(rows)] == ["training loss", "training accuracy"]
    assert training(rows)[0].about == "Training loss from 2 at step 1 to 1 at step 2."


def test_of_a_crowd_the_front_alone_is_named_and_of_curves_the_ends() -> None:
    names = [f"p{i:02}" for i in range(CROWD + 1)]
    seen = looks(names)
    crowd = [Point(n, i, i % 5, seen[n], on_front=i in (3, 7)) for i, n in enumerate(names)]
    assert texts(scatter(crowd, "t", PLAIN, "x")) & set(names) == {"p03", "p07"}
    assert texts(scatter(crowd[:CROWD], "t", PLAIN, "x")) >= {"p00", "p11"}
    series = [Curve(n, [1, 2], [0.0, float(i)], seen[n]) for i, n in enumerate(names)]
    assert texts(curves(series, "t", Scale("n"), "x")) & set(names) == {names[0], names[-1]}


def test_a_thin_line_joins_policies_in_the_order_that_is_given() -> None:
    """base (1, 2), bon (4, 3.5), sft (0, 3): right and up, then left and down. A name that is not drawn is left out."""

    def lines(paths: list[list[str]]) -> list[str]:
        inline = str(scatter(POINTS, "t", (Scale("x"), Scale("")), "x", paths=paths).inline)
        return re.findall(r'<path d="([^"]+)"[^>]*stroke-opacity: 0\.7', inline)

    assert lines([]) == [] and lines([["base", "elsewhere"]]) == []
    (path,) = lines([["base", "bon[n=4]", "elsewhere", "sft"]])
    (x0, y0), (x1, y1), (x2, y2) = [tuple(map(float, spot)) for spot in re.findall(r"[ML] (\S+) (\S+)", path)]
    assert x2 < x0 < x1 and y1 < y2 < y0  # y downwards


def test_a_long_name_keeps_its_end_by_which_members_of_a_sweep_differ() -> None:
    points = [Point(f"controlled_decoding[strength={s}]", 0.0, 1.0, LOOKS["sft"]) for s in (0.5, 1.5)]
    shown = texts(forest(points, "gold", "difference", "x"))
    assert {"controlled_de…th=0.5]", "controlled_de…th=1.5]"} <= shown


@given(
    st.lists(st.tuples(st.floats(40, 280), st.floats(40, 200), st.integers(2, 24)), min_size=1, max_size=20),
)
def test_names_lie_on_no_other_name_on_no_point_and_inside(chosen: list[tuple[float, float, int]]) -> None:
    points, widths = [(x, y) for x, y, _ in chosen], [5.7 * letters for *_, letters in chosen]
    inside = Box(38, 38, WIDTH, 210)
    found = [box for box in placed(points, widths, 11, inside) if box]
    assert all(box.within(inside) for box in found)
    assert not any(one.meets(other) for one, other in combinations(found, 2))
    markers = [Box(x - MARKER, y - MARKER, x + MARKER, y + MARKER) for x, y in points]
    assert not any(box.meets(marker) for box in found for marker in markers)


def test_a_name_stands_to_the_right_if_it_can_and_fifteen_in_a_row_all_find_a_place() -> None:
    inside = Box(0, 0, 280, 200)
    (box,) = placed([(50, 50)], [40], 10, inside)
    assert box == Box(56, 45, 96, 55)
    (box,) = placed([(50, 50)], [40], 10, inside, avoided=[Box(70, 40, 80, 60)])
    assert box == Box(4, 45, 44, 55), "the left, where the right is taken by something to be avoided"
    (box,) = placed([(270, 50)], [40], 10, inside, avoided=[inside])
    assert box is not None and box.right <= 264, "and a place to be avoided rather than none"
    along = placed([(20 + 16 * i, 100 + i % 3) for i in range(15)], [60] * 15, 11, inside)
    assert all(along)


def test_the_stairs_go_along_what_is_not_beaten() -> None:
    """To the left is better: from (0, 3) the stairs go right at height 3 and rise at 4; in the other case they fall."""
    for lower_is_better, expected in ((True, [3.0, 3.0, 3.5]), (False, [3.0, 3.5, 3.5])):
        inline = str(scatter(POINTS, "t", (Scale("x"), Scale("")), "x", lower_is_better=lower_is_better).inline)
        (path,) = re.findall(r'<path d="([^"]+)"[^>]*stroke-dasharray: 1', inline)
        ys = [float(y) for y in re.findall(r"[ML] \S+ (\S+)", path)]
        top, bottom = min(ys), max(ys)
        assert [round(3 + 0.5 * (bottom - y) / (bottom - top), 6) for y in ys] == expected


def test_ticks_are_round_numbers_apart_from_each_other() -> None:
    assert ticks("asinh", -0.1, 35.0)[:2] == [0.0, 0.5]
    assert ticks("log", 40, 1100) == [50, 100, 200, 500, 1000]
    assert len(ticks("log", 41, 47)) >= 2, "where no round number lies between, others serve"
    for kind, low, high in (("asinh", 0, 0.01), ("asinh", 0, 300), ("log", 1, 1e6)):
        forward = FUNCTIONS[kind][0]
        steps = [
            (forward(b) - forward(a)) / (forward(high) - forward(low)) for a, b in pairwise(ticks(kind, low, high))
        ]
        assert min(steps, default=1) > 0.1
