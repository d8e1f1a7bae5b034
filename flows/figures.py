"""Figures of the report, as inline SVG drawn by matplotlib. Imported only when a report is drawn."""

from __future__ import annotations

import io
from typing import Any

import matplotlib

matplotlib.use("svg")
from markupsafe import Markup
from matplotlib.figure import Figure

matplotlib.rcParams.update({"svg.fonttype": "none", "svg.hashsalt": "alignflow", "font.size": 9})

COLOURS = ("#0969da", "#bc4c00", "#1a7f37", "#8250df", "#bf3989", "#57606a")


def intervals(rows: list[dict[str, Any]], reference: str) -> Markup:
    """Mean reward of each policy with its interval, a panel for each reward, and the win rate against the reference."""
    rewards = list(dict.fromkeys(r["judged_by"] for r in rows))
    policies = list(dict.fromkeys(r["policy"] for r in rows))
    figure = Figure(figsize=(4.2 * (len(rewards) + 1), 1.2 + 0.42 * len(policies)), layout="constrained")
    axes = figure.subplots(1, len(rewards) + 1, squeeze=False)[0]
    for axis, reward, colour in zip(axes, rewards, COLOURS * len(rewards), strict=False):
        _dots(axis, [r for r in rows if r["judged_by"] == reward], policies, "reward", colour, 0.0)
        axis.set_title(f"mean reward by {reward}", loc="left")
    last = axes[-1]
    for i, reward in enumerate(rewards):
        some = [r for r in rows if r["judged_by"] == reward and r["policy"] != reference]
        shift = 0.12 * (i - (len(rewards) - 1) / 2)
        _dots(last, some, policies, "win_rate", COLOURS[i % len(COLOURS)], shift, label=reward)
    last.axvline(0.5, color="#8c959f", linewidth=0.8, linestyle="--")
    last.set_title(f"win rate against {reference}", loc="left")
    if len(rewards) > 1:
        last.legend(title="judged by", frameon=False, fontsize=8, loc="best")
    return _svg(figure)


def _dots(
    axis: Any,
    rows: list[dict[str, Any]],
    policies: list[str],
    what: str,
    colour: str,
    shift: float,
    label: str | None = None,
) -> None:
    heights = [policies.index(r["policy"]) + shift for r in rows]
    values = [r[what] for r in rows]
    ends = [
        [r[what] - r[f"{what}_low"] for r in rows],
        [r[f"{what}_high"] - r[what] for r in rows],
    ]
    axis.errorbar(values, heights, xerr=ends, fmt="o", markersize=5, capsize=3, color=colour, label=label)
    axis.set_yticks(range(len(policies)), policies)
    axis.set_ylim(len(policies) - 0.5, -0.5)
    axis.grid(axis="x", color="#d0d7de", linewidth=0.6)
    axis.spines[["top", "right", "left"]].set_visible(False)


def best_of(rows: list[dict[str, Any]]) -> Markup:
    """Mean reward of the best of n draws against n, with its interval, a panel for each reward."""
    rewards = list(dict.fromkeys(r["judged_by"] for r in rows))
    policies = list(dict.fromkeys(r["policy"] for r in rows))
    figure = Figure(figsize=(4.2 * len(rewards), 2.8), layout="constrained")
    for axis, reward in zip(figure.subplots(1, len(rewards), squeeze=False)[0], rewards, strict=True):
        for number, policy in enumerate(policies):
            some = [r for r in rows if (r["policy"], r["judged_by"]) == (policy, reward)]
            n, colour = [r["n"] for r in some], COLOURS[number % len(COLOURS)]
            marker = "os^vDP"[number % 6]
            axis.plot(n, [r["reward"] for r in some], color=colour, marker=marker, markersize=3, label=policy)
            ends = ([r[f"reward_{end}"] for r in some] for end in ("low", "high"))
            axis.fill_between(n, *ends, color=colour, alpha=0.15, linewidth=0)
        axis.set_xscale("log", base=2)
        axis.xaxis.set_major_formatter("{x:g}")
        axis.set_title(f"mean reward by {reward}", loc="left")
        axis.set_xlabel("draws to choose among")
        axis.grid(color="#d0d7de", linewidth=0.6)
        axis.spines[["top", "right"]].set_visible(False)
    if len(policies) > 1:
        axis.legend(frameon=False, fontsize=8)
    return _svg(figure)


def uniformity(values: list[float]) -> Markup:
    """How often the rank of a fresh draw of the reference fell into each tenth, beside what is expected."""
    figure = Figure(figsize=(4.6, 2.4), layout="constrained")
    axis = figure.subplots()
    axis.hist(values, bins=10, range=(0, 1), color=COLOURS[0], edgecolor="white")
    axis.axhline(len(values) / 10, color="#8c959f", linewidth=0.8, linestyle="--")
    axis.set_title("calibrated reward of fresh reference answers", loc="left")
    axis.set_xlabel("rank among the rollouts")
    axis.set_ylabel("prompts")
    axis.spines[["top", "right"]].set_visible(False)
    return _svg(figure)


def curves(rows: list[dict[str, Any]]) -> Markup:
    """Training loss, and accuracy where it was logged, against the optimizer step."""
    drawn = [k for k in ("loss", "accuracy", "margin") if any(k in r for r in rows)]
    figure = Figure(figsize=(4.2 * len(drawn), 2.6), layout="constrained")
    for axis, key, colour in zip(figure.subplots(1, len(drawn), squeeze=False)[0], drawn, COLOURS, strict=False):
        some = [r for r in rows if key in r]
        axis.plot(
            [r["step"] for r in some], [r[key] for r in some], color=colour, marker="o", markersize=3, linewidth=1.2
        )
        axis.set_title(f"training {key}", loc="left")
        axis.set_xlabel("optimizer step")
        axis.grid(color="#d0d7de", linewidth=0.6)
        axis.spines[["top", "right"]].set_visible(False)
    return _svg(figure)


def _svg(figure: Figure) -> Markup:
    text = io.StringIO()
    figure.savefig(text, format="svg", metadata={"Date": None})
    drawing = text.getvalue()
    return Markup(drawing[drawing.index("<svg") :])  # drawn by us from escaped labels
