"""Figures of the report, each one panel as wide as a telephone, drawn by matplotlib. Imported only when a report is drawn."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import matplotlib

matplotlib.use("svg")
import numpy as np
from markupsafe import Markup
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.markers import MarkerStyle
from matplotlib.path import Path as Outline
from matplotlib.ticker import MaxNLocator
from matplotlib.transforms import IdentityTransform

from flows.axes import Scale, run
from flows.drawing import Drawing
from flows.labels import Box, placed
from flows.theme import LIGHT, SERIES, Look

matplotlib.rcParams.update({
    "svg.fonttype": "none", "svg.hashsalt": "alignflow", "font.size": 10, "axes.edgecolor": LIGHT["quiet"],
    "axes.labelcolor": LIGHT["quiet"], "xtick.color": LIGHT["quiet"], "ytick.color": LIGHT["quiet"], "text.color": LIGHT["text"],
    "axes.linewidth": 0.6, "xtick.major.width": 0.6, "ytick.major.width": 0.6, "grid.color": LIGHT["line"], "grid.linewidth": 0.6,
    "axes.axisbelow": True,
})  # fmt: skip

WIDTH, HEIGHT = 288, 236  # units of the drawing: at its narrowest, on a telephone, a unit is a little more than a pixel
LETTER = 5.7
"""The mean width of a letter of a name."""
LONGEST = 24
CROWD = 12
"""Where there are more policies than this, only those on the front (of curves: the highest and the lowest) are named in the panel."""

INK, QUIET = LIGHT["text"], LIGHT["quiet"]


@dataclass(frozen=True)
class Point:
    """A policy in the plane; `x_ends` and `y_ends` are the ends of its intervals."""

    name: str
    x: float
    y: float
    look: Look
    x_ends: tuple[float, float] | None = None
    y_ends: tuple[float, float] | None = None
    fill: str = "full"
    """Matplotlib's `fillstyle`."""
    on_front: bool = False


@dataclass(frozen=True)
class Curve:
    """Values against numbers, with the ends of their intervals where they are to be drawn as a band."""

    name: str
    x: Sequence[float]
    y: Sequence[float]
    look: Look
    band: tuple[Sequence[float], Sequence[float]] | None = None
    dashes: str = "-"
    fill: str = "full"


def forest(points: Sequence[Point], title: str, label: str, about: str) -> Drawing:
    """One line a policy, from above: its value and interval beside a dashed line at 0."""
    left = min(136.0, 14 + LETTER * max(len(_short(p.name, 21)) for p in points))
    height = 62 + 17 * len(points)
    figure, axis = _panel(title, height=height, left=left)
    axis.axvline(0, color=QUIET, linewidth=0.8, dashes=(4, 3))
    for row, p in enumerate(points):
        _mark(axis, Point(p.name, p.x, row, p.look, x_ends=p.x_ends), 1.4)
    axis.set_yticks(range(len(points)), [_short(p.name, 21) for p in points])
    axis.tick_params(axis="y", length=0, labelcolor=INK)
    axis.set_ylim(len(points) - 0.4, -0.6)
    axis.grid(axis="x")
    axis.xaxis.set_major_locator(MaxNLocator(5))
    axis.set_xlabel(label)
    axis.spines[["left"]].set_visible(False)
    return Drawing.of(figure, title, about)


def scatter(
    points: Sequence[Point],
    title: str,
    scales: tuple[Scale, Scale],
    about: str,
    *,
    lower_is_better: bool = False,
    curve: Curve | None = None,
    paths: Sequence[Sequence[str]] = (),
) -> Drawing:
    """Policies in the plane with the staircase of those on the front, each with its name; above is better, and so is the
    right, or with `lower_is_better` the left. `paths` are names of policies to join by a thin line, in order."""
    figure, axis = _panel(title)
    xs = [v for p in points for v in (p.x, *(p.x_ends or ()))] + list(curve.x if curve else ())
    ys = [v for p in points for v in (p.y, *(p.y_ends or ()))] + list(curve.y if curve else ())
    ys += [y for end in (curve.band if curve and curve.band else ()) for y in end]
    run(axis.xaxis, axis.set_xscale, axis.set_xlim, scales[0], xs)
    run(axis.yaxis, axis.set_yscale, axis.set_ylim, scales[1], ys)
    best = sorted((p.x, p.y) for p in points if p.on_front)
    steps = "steps-post" if lower_is_better else "steps-pre"
    axis.plot(*zip(*best, strict=True), color=QUIET, linewidth=1, drawstyle=steps, dashes=(1, 1.5)) if best else None
    spots = {p.name: (p.x, p.y) for p in points}
    for path in paths:
        some = [spots[name] for name in path if name in spots]
        axis.plot(*zip(*some, strict=True), color=QUIET, linewidth=0.7, alpha=0.7) if len(some) > 1 else None
    for p in sorted(points, key=lambda p: p.on_front):
        _mark(axis, p, 1.2, 0.8)
    chosen = [p for p in points if p.on_front] + [p for p in points if not p.on_front and len(points) <= CROWD]
    named = [(p.x, p.y, p.name, p.on_front) for p in chosen]
    if curve:
        axis.plot(curve.x, curve.y, color=QUIET, linewidth=1)
        if curve.band:
            axis.fill_between(curve.x, *curve.band, color=QUIET, alpha=0.15, linewidth=0)
        named.append((curve.x[-1], curve.y[-1], curve.name, False))
    _name(figure, axis, named, [_bar(axis, p, ends) for p in points for ends in ("x", "y")])
    return Drawing.of(figure, title, about)


def curves(series: Sequence[Curve], title: str, scale: Scale, about: str) -> Drawing:
    """Curves, each with its name at its end where there are several."""
    by_end = sorted(series, key=lambda c: c.y[-1])
    named = series if len(series) <= CROWD else [by_end[0], by_end[-1]]
    room = min(120.0, 14 + LETTER * max(len(_short(c.name)) for c in named)) if len(series) > 1 else 8.0
    lines = 50 if any("\n" in name for name in scale.names.values()) else 38
    figure, axis = _panel(title, bottom=lines, right=room)
    ys = [v for c in series for v in (*c.y, *(v for side in c.band or () for v in side))]
    run(axis.xaxis, axis.set_xscale, axis.set_xlim, scale, [v for c in series for v in c.x])
    run(axis.yaxis, axis.set_yscale, axis.set_ylim, Scale(""), ys)
    for one in series:
        _draw(axis, one)
    if len(series) > 1:
        _name(figure, axis, [(c.x[-1], c.y[-1], c.name, False) for c in named])
    return Drawing.of(figure, title, about)


def uniformity(values: Sequence[float], title: str, about: str) -> Drawing:
    """How often the rank of a fresh draw of the reference fell into each tenth, beside what is expected."""
    figure, axis = _panel(title)
    axis.hist(values, bins=10, range=(0, 1), color=LIGHT["c0"], edgecolor=LIGHT["page"])
    axis.axhline(len(values) / 10, color=QUIET, linewidth=0.8, dashes=(4, 3))
    axis.set_xlabel("rank among the rollouts")
    axis.yaxis.set_major_locator(MaxNLocator(4, integer=True))
    return Drawing.of(figure, title, about)


def training(rows: Sequence[Mapping[str, float]]) -> list[Drawing]:
    """Training loss, and accuracy and margin where they were logged, against the optimizer step."""
    found = []
    for key, colour in zip(("loss", "accuracy", "margin"), SERIES, strict=False):
        some = [r for r in rows if key in r]
        if some:
            steps, values = [r["step"] for r in some], [r[key] for r in some]
            curve = Curve(key, steps, values, Look(LIGHT[colour], "o"))
            about = (
                f"Training {key} from {values[0]:.4g} at step {steps[0]:g} to {values[-1]:.4g} at step {steps[-1]:g}."
            )
            found.append(curves([curve], f"training {key}", Scale("optimizer step"), about))
    return found


def glyph(look: Look) -> Markup:
    """A policy's marker, small, to stand beside its name."""
    style = MarkerStyle(look.marker)
    outline = style.get_path().transformed(style.get_transform())
    scale = 5 / float(np.abs(outline.vertices).max())
    parts = []
    for vertices, code in outline.iter_segments():
        corners = vertices.reshape(-1, 2) * (scale, -scale)
        parts.append(_LETTERS[code] + ("" if code == Outline.CLOSEPOLY else " ".join(f"{v:.2f}" for v in corners.flat)))
    name = next(name for name, colour in LIGHT.items() if colour == look.colour)
    drawn = '<svg class=glyph viewBox="-6 -6 12 12" aria-hidden=true><path d="{}" fill="var(--{})"/></svg>'
    return Markup(drawn).format("".join(parts), name)


_LETTERS = {Outline.MOVETO: "M", Outline.LINETO: "L", Outline.CURVE3: "Q", Outline.CURVE4: "C", Outline.CLOSEPOLY: "Z"}


def _panel(
    title: str, *, height: float = HEIGHT, left: float = 40, bottom: float = 38, right: float = 8
) -> tuple[Figure, Any]:
    figure = Figure(figsize=(WIDTH / 72, height / 72), dpi=72)
    figure.patch.set_visible(False)
    axis = figure.add_axes(
        (left / WIDTH, bottom / height, (WIDTH - left - right) / WIDTH, (height - bottom - 24) / height)
    )
    axis.patch.set_visible(False)
    axis.spines[["top", "right"]].set_visible(False)
    figure.text(4 / WIDTH, 1 - 13 / height, _short(title, 46), fontsize=10.5, fontweight="bold")
    return figure, axis


def _mark(axis: Any, p: Point, width: float, alpha: float = 1.0) -> None:
    for ends, where in ((p.x_ends, ("x", "y")), (p.y_ends, ("y", "x"))):
        if ends is not None:
            both = {where[0]: ends, where[1]: (getattr(p, where[1]),) * 2}
            axis.plot(both["x"], both["y"], color=p.look.colour, linewidth=width, alpha=alpha, solid_capstyle="butt")
    hollow = {"markerfacecolor": LIGHT["page"], "markerfacecoloralt": p.look.colour} if p.fill != "full" else {}
    style = {"fillstyle": "full" if p.fill == "none" else p.fill, "markersize": 6.5, "markeredgewidth": 1, **hollow}
    (line,) = axis.plot(
        [p.x], [p.y], color=p.look.colour, marker=p.look.marker, linestyle="none", clip_on=False, **style
    )
    line.set_gid(f"tip:{_tip(p)}")


def _tip(p: Point) -> str:
    interval = p.y_ends or p.x_ends
    value = p.y if p.y_ends else p.x
    return p.name if interval is None else f"{p.name}: {value:.3f} [{interval[0]:.3f}, {interval[1]:.3f}]"


def _draw(axis: Any, c: Curve) -> None:
    hollow = {"markerfacecolor": LIGHT["page"]} if c.fill == "none" else {}
    marked = [i for i, x in enumerate(c.x) if len(c.x) <= 10 or (len(c.x) <= 64 and x > 0 and math.log2(x) % 1 == 0)]
    style = {"marker": c.look.marker, "markersize": 4, "markevery": marked, "linewidth": 1.3, **hollow}
    (line,) = axis.plot(c.x, c.y, color=c.look.colour, linestyle=c.dashes, **style)
    line.set_gid(f"tip:{c.name}")
    if c.band:
        axis.fill_between(c.x, *c.band, color=c.look.colour, alpha=0.15, linewidth=0)


def _bar(axis: Any, p: Point, along: str) -> Box:
    """What an interval covers of the drawing."""
    ends = p.x_ends if along == "x" else p.y_ends
    low, high = ends or (getattr(p, along),) * 2
    corners = [(low, p.y), (high, p.y)] if along == "x" else [(p.x, low), (p.x, high)]
    (left, bottom), (right, top) = axis.transData.transform(corners)
    return Box(left - 1, bottom - 1, right + 1, top + 1)


def _name(
    figure: Figure, axis: Any, named: Sequence[tuple[float, float, str, bool]], avoided: Sequence[Box] = ()
) -> None:
    """Writes names beside points; those that found no place are left to the legend."""
    spots = [tuple(axis.transData.transform((x, y))) for x, y, _, _ in named]
    texts = [_short(name) for _, _, name, _ in named]
    area = axis.get_window_extent()
    inside = Box(area.x0 + 1, area.y0 + 1, WIDTH - 1.0, area.y1 + 8)
    widths = [LETTER * len(t) * (1.08 if strong else 1) for t, (*_, strong) in zip(texts, named, strict=True)]
    boxes = placed(spots, widths, 11, inside, avoided)
    for spot, text, (*_, strong), box in zip(spots, texts, named, boxes, strict=True):
        if box is None:
            continue
        x, y = (min(max(v, low), high) for v, low, high in zip(spot, box[:2], box[2:], strict=True))
        if math.dist(spot, (x, y)) > 8:
            line = Line2D([spot[0], x], [spot[1], y], color=QUIET, linewidth=0.5, transform=IdentityTransform())
            figure.add_artist(line)
        weight = "bold" if strong else "normal"
        axis.text(box.left, box.bottom + 2.5, text, transform=IdentityTransform(), fontsize=10, fontweight=weight)


def _short(name: str, most: int = LONGEST) -> str:
    """Its beginning and its end, by which members of a sweep differ."""
    tail = most // 3
    return name if len(name) <= most else f"{name[: most - 1 - tail]}…{name[-tail:]}"
