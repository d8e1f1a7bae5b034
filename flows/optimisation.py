"""Over-optimisation: the guiding reward and held-out ones against how hard a policy was pushed (arXiv 2210.10760).

The members of a sweep over a number, or the rounds of a stage, each against the reference in the standard deviations of the
reference's answers, so that rewards of different units stand on one axis.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
from markupsafe import Markup

from flows.axes import Scale
from flows.beside import Beside
from flows.figures import Curve, curves
from flows.report_table import by_place
from flows.reward_roles import INVOLVED
from flows.theme import LIGHT, MARKERS, SERIES, Look
from specs.stage import Stage
from tasks.evaluation_table import Evaluation

FEWEST = 3
"""Members that make a curve."""
DASHES = {"guides": "-", "behind the guide": "-.", "same labels": ":", "held out": "--"}


class Family(NamedTuple):
    """Policies that differ in one number."""

    name: str
    number: str
    """The field that differs."""
    members: dict[float, str]
    """By its value, in ascending order."""


def families(stages: Mapping[str, Stage], policies: Sequence[str]) -> Iterator[Family]:
    """Of the policies compared, those that came of one stage of the file and differ in one number alone: a swept field, or the
    round. The last round has its stage's own name."""
    found: dict[tuple[str, str, tuple[tuple[str, str], ...]], dict[float, str]] = {}
    for policy in policies:
        if policy not in stages:
            continue
        entry, (name, _, inner) = stages[policy], policy.partition("[")
        swept = dict(part.split("=", 1) for part in inner.removesuffix("]").split(",") if "=" in part)
        if getattr(entry, "rounds", 1) > 1:
            swept["round"] = str(entry.round)  # type: ignore[attr-defined]  # those with rounds have one
        for field, text in swept.items():
            if field != "seed" and (value := _number(text)) is not None:
                others = tuple((k, v) for k, v in swept.items() if k != field)
                found.setdefault((name, field, others), {})[value] = policy
    for (name, field, others), members in found.items():
        if len(members) >= FEWEST:
            fixed = ",".join(f"{key}={value}" for key, value in others)
            yield Family(f"{name}[{fixed}]" if fixed else name, field, dict(sorted(members.items())))


def _number(text: str) -> float | None:
    try:
        return float(text)
    except ValueError:
        return None


def gains(evaluation: Evaluation, answers: Sequence[Mapping[str, Any]], family: Family) -> Iterator[dict[str, Any]]:
    """One row for each member and reward: the difference to the reference, in the standard deviations of the reference's
    rewards. A reward that is the same for all of the reference's answers has no such unit, and no row."""
    rows = by_place(evaluation)
    for place, reward in enumerate(evaluation.rewards):
        scores = [a[f"reward.{reward}"] for a in answers if a["policy"] == evaluation.reference]
        unit = float(np.std(scores))
        for value, policy in family.members.items() if unit > 0 else ():
            row = rows[policy, reward]
            named = {"family": family.name, family.number: value, "policy": policy, "judged_by": reward}
            scaled = {key: row[key] / unit for key in ("difference", "difference_low", "difference_high")}
            yield named | {"reward_had_part": evaluation.roles[evaluation.policies.index(policy)][place]} | scaled


def over_optimisation(
    name: str, evaluation: Evaluation, stages: Mapping[str, Stage], answers: Sequence[Mapping[str, Any]], beside: Beside
) -> Markup:
    """A panel for each family; empty where there is none."""
    panels, shown = {}, []
    for family in families(stages, evaluation.policies):
        rows, series = list(gains(evaluation, answers, family)), []
        for place, reward in enumerate(evaluation.rewards):
            some = [row for row in rows if row["judged_by"] == reward]
            if not some:
                continue
            role = max((row["reward_had_part"] for row in some), key=INVOLVED.index)
            look = Look(LIGHT[SERIES[place % len(SERIES)]], MARKERS[place % len(MARKERS)])
            numbers, values = [row[family.number] for row in some], [row["difference"] for row in some]
            band = [row["difference_low"] for row in some], [row["difference_high"] for row in some]
            fill = "full" if role == "guides" else "none"
            series.append(Curve(f"{reward} ({role})", numbers, values, look, band, DASHES[role], fill))
        if series:
            numbers = list(family.members)
            kind = "log" if family.number == "n" and numbers[0] > 0 else "linear"
            about = "; ".join(f"{c.name} from {c.y[0]:+.3f} to {c.y[-1]:+.3f}" for c in series)
            scale = Scale(family.number, kind, numbers if len(numbers) <= 8 else ())
            panels[f"{family.name}.{family.number}"] = curves(
                series, f"{family.name} over {family.number}", scale, about
            )
            shown += rows
    if not panels:
        return Markup("")
    caption = (
        f"Difference to {evaluation.reference} in standard deviations of its rewards, against the number that differs. Solid lines, "
        "full markers: rewards that guide. Dashed lines, empty markers: rewards held out, or behind the guide; dotted ones learnt from "
        "the same labels. Where the solid line goes on rising and a dashed one turns, the guide is over-optimised."
    )
    return Markup("<h4>Over-optimisation</h4>{}").format(beside.figures(name, "optimisation", panels, caption, shown))
