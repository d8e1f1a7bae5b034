"""The fronts of a comparison: reward against divergence, against compute, against another reward; curves of best-of-n."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from itertools import combinations
from typing import Any

import numpy as np
from markupsafe import Markup

from flows.axes import Scale
from flows.beside import Beside
from flows.figures import Curve, Point, curves, glyph, scatter
from flows.optimisation import families
from flows.page import bullets, joined, paragraph, section, table
from flows.report_table import ALIKE, by_place
from flows.reward_roles import order, part
from flows.theme import Look
from flows.wording import ESTIMATORS, spread
from registry.methods.best_of_n import kl_bound
from registry.methods.fronts import front, hypervolume, reference_point
from specs.soup import Soup
from specs.stage import Stage
from tasks.evaluation_table import Evaluation

FILLS = {"rao_blackwell": "full", "best_of_n": "left", "point_mass": "none", "bound": "bottom"}
"""Of a marker, by how the divergence is known."""
FILLED = {"full": "full", "left": "full on the left", "none": "empty", "bottom": "full below"}
ROUNDING = 1e-4
"""Nats: a model is so far from itself where its logits were rounded."""
BANDS = 4
"""So many bands can be told apart."""


def fronts(
    name: str, evaluation: Evaluation, stages: Mapping[str, Stage], looks: Mapping[str, Look], beside: Beside
) -> Markup:
    """All of them, with one legend above."""
    paths = _paths(stages, evaluation.policies)
    legend = Markup("<ul class=legend>{}</ul>").format(
        joined([Markup("<li>{}{}</li>").format(glyph(looks[p]), p) for p in evaluation.policies])
    )
    parts = [
        legend,
        _against_kl(name, evaluation, paths, looks, beside),
        _against_compute(name, evaluation, paths, looks, beside),
        *_against_each_other(name, evaluation, paths, looks, beside),
        _best_of(name, evaluation, looks, beside),
        _mode_connectivity(evaluation),
    ]
    return section("Fronts", *parts, level=3)


def _paths(stages: Mapping[str, Stage], policies: Sequence[str]) -> list[list[str]]:
    """Policies that differ in one number, in its order, and the mixtures of two experts from one to the other."""
    found = [list(family.members.values()) for family in families(stages, policies)]
    mixed: dict[str, list[str]] = {}
    for policy in policies:
        entry = stages.get(policy)
        if isinstance(entry, Soup) and len(entry.experts) == 2:
            mixed.setdefault(policy.partition("[")[0], []).append(policy)
    return [*found, *mixed.values()]


def _ends(row: Mapping[str, Any], what: str) -> tuple[float, float]:
    return row[f"{what}_low"], row[f"{what}_high"]


def _interval(row: Mapping[str, Any], of: str = "") -> dict[str, float]:
    """A mean reward with its ends, as columns of a CSV file."""
    return {f"{of}{what}": row[what] for what in ("reward", "reward_low", "reward_high")}


def on_front(costs: Mapping[str, float], rewards: Mapping[str, float]) -> set[str]:
    """The policies that no other one beats: none costs as little and has as much reward, and less or more of one."""
    names = list(costs)
    if not names:
        return set()
    best = front(np.array([[-costs[name], rewards[name]] for name in names]))
    return {name for name, is_best in zip(names, best, strict=True) if is_best}


def _against_kl(
    name: str, evaluation: Evaluation, paths: list[list[str]], looks: Mapping[str, Look], beside: Beside
) -> Markup:
    rows, panels, shown = by_place(evaluation), {}, []
    known = {p: found for p in evaluation.policies if (found := evaluation.kl(p)) is not None}
    if not known:
        return Markup("")
    costs = {p: found[1]["estimate"] for p, found in known.items()}
    for place in order(evaluation):
        reward = evaluation.rewards[place]
        best = on_front(costs, {p: rows[p, reward]["reward"] for p in known})
        points = []
        for p, (how, kl) in known.items():
            row = rows[p, reward]
            ends = (kl["low"], kl["high"]), _ends(row, "reward")
            points.append(Point(p, kl["estimate"], row["reward"], looks[p], *ends, FILLS[how], p in best))
            shown.append({
                "policy": p, "judged_by": reward, **_interval(row), "kl": kl["estimate"], "kl_low": kl["low"],
                "kl_high": kl["high"], "kl_estimator": how, "on_front": p in best,
            })  # fmt: skip
        curve = _of_reference(evaluation, reward, looks)
        scales = Scale(f"KL from the model of {evaluation.reference}, nats (asinh scale)", "asinh"), Scale("")
        title = f"{reward} ({part(evaluation, place)})"
        about = f"Mean reward against divergence. On the front: {_names(best, evaluation)}."
        panels[reward] = scatter(points, title, scales, about, lower_is_better=True, curve=curve, paths=paths)
    return Markup("<h4>Reward against divergence</h4>{}").format(
        beside.figures(name, "kl", panels, _kl_caption(evaluation, known), shown)
    )


def _kl_caption(evaluation: Evaluation, known: Mapping[str, tuple[str, Any]]) -> str:
    used = dict.fromkeys(how for how, _ in known.values())
    marks = "; ".join(f"{FILLED[FILLS[how]]}: {ESTIMATORS[how]}" for how in used)
    missing = [p for p in evaluation.policies if p not in known]
    text = (
        "Mean reward above, divergence to the right. The dotted stairs join what no other policy beats (bold names): as near to the "
        "reference and as high. Thin lines join policies that differ in one number. How the divergence is known shows in the "
        f"marker ({marks})."
    )
    if _of_reference(evaluation, evaluation.chooser, {}, drawn=False):
        chooser = evaluation.chooser
        text += (
            f" The line is the best of n draws of {evaluation.reference} by {chooser}, at log n - (n - 1) / n, the most that choosing "
            "can move it, with its intervals: what lies below them has less reward than choosing reaches at as much divergence."
        )
    if missing:
        text += f" Not drawn, for their divergence is not known: {', '.join(missing)}."
    return text


def _of_reference(
    evaluation: Evaluation, reward: str, looks: Mapping[str, Look], *, drawn: bool = True
) -> Curve | None:
    """What choosing among draws of the reference is worth, where the reference is its model as it is and chooses by none."""
    reference = evaluation.reference
    own = evaluation.kl(reference)
    points = [r for r in evaluation.best_of() if (r["policy"], r["judged_by"]) == (reference, reward)]
    if own is None or own[0] != "rao_blackwell" or abs(own[1]["estimate"]) > ROUNDING or len(points) < 2:
        return None
    look = looks[reference] if drawn else Look("", "")
    band = [r["reward_low"] for r in points], [r["reward_high"] for r in points]
    return Curve(
        f"best of n of {reference}", [r["kl_bound"] for r in points], [r["reward"] for r in points], look, band
    )


def _against_compute(
    name: str, evaluation: Evaluation, paths: list[list[str]], looks: Mapping[str, Look], beside: Beside
) -> Markup:
    rows, panels, shown = by_place(evaluation), {}, []
    costs = {policy: evaluation.positions(policy) for policy in evaluation.policies}
    if min(costs.values()) <= 0:
        return Markup("")
    for place in order(evaluation):
        reward = evaluation.rewards[place]
        best = on_front(costs, {p: rows[p, reward]["reward"] for p in costs})
        points = [
            Point(
                p, cost, rows[p, reward]["reward"], looks[p], None, _ends(rows[p, reward], "reward"), on_front=p in best
            )
            for p, cost in costs.items()
        ]
        shown += [
            {
                "policy": p,
                "judged_by": reward,
                **_interval(rows[p, reward]),
                "positions_per_answer": cost,
                "on_front": p in best,
            }
            for p, cost in costs.items()
        ]
        scales = Scale("forward positions of an answer (logarithmic scale)", "log"), Scale("")
        about = f"Mean reward against compute. On the front: {_names(best, evaluation)}."
        title = f"{reward} ({part(evaluation, place)})"
        panels[reward] = scatter(points, title, scales, about, lower_is_better=True, paths=paths)
    caption = (
        "Mean reward above, forward positions of an answer to the right (what the policy's model and its guides read and wrote, "
        f"over all draws; {ALIKE}). The dotted stairs join what no other policy beats."
    )
    return Markup("<h4>Reward against compute</h4>{}").format(beside.figures(name, "compute", panels, caption, shown))


def _against_each_other(
    name: str, evaluation: Evaluation, paths: list[list[str]], looks: Mapping[str, Look], beside: Beside
) -> Iterator[Markup]:
    if len(evaluation.rewards) < 2 or len(evaluation.policies) < 2:
        return
    rows, panels, shown, said = by_place(evaluation), {}, [], []
    volumes = []
    for places in combinations(order(evaluation), 2):
        x, y = (evaluation.rewards[place] for place in places)
        values = np.array([[rows[p, reward]["reward"] for reward in (x, y)] for p in evaluation.policies])
        best = {p for p, is_best in zip(evaluation.policies, front(values), strict=True) if is_best}
        points = [
            Point(p, a, b, looks[p], _ends(rows[p, x], "reward"), _ends(rows[p, y], "reward"), on_front=p in best)
            for p, (a, b) in zip(evaluation.policies, values.tolist(), strict=True)
        ]
        shown += [
            {
                "policy": p,
                "x": x,
                "y": y,
                **_interval(rows[p, x], "x_"),
                **_interval(rows[p, y], "y_"),
                "on_front": p in best,
            }
            for p in evaluation.policies
        ]
        about = f"{y} upwards against {x} to the right. On the front: {_names(best, evaluation)}."
        panels[f"{x}.{y}"] = scatter(points, f"{y} against {x}", (Scale(x), Scale("")), about, paths=paths)
        volumes.append(_volume((x, y), values))
    for three in combinations(order(evaluation), 3):
        triple = tuple(evaluation.rewards[place] for place in three)
        volumes.append(
            _volume(triple, np.array([[rows[p, reward]["reward"] for reward in triple] for p in evaluation.policies]))
        )
    said = [
        f"{' and '.join(v['rewards'].split(' '))}: hypervolume {v['hypervolume']:.4g} above ({v['reference_point']})"
        for v in volumes
    ]
    numbers = beside.numbers(f"{name}.hypervolume", volumes)
    caption = (
        "Each pair of rewards. The dotted stairs join what no other policy beats; the hypervolume is what lies below them and above "
        "the reference point, which is the lowest value on each axis less a tenth of the range. It compares only under one such point."
    )
    yield Markup("<h4>Rewards against each other</h4>{}{}").format(
        beside.figures(name, "rewards", panels, caption, shown),
        bullets([*said, Markup("<a href='{0}'>{0}</a>").format(numbers)], "quiet"),
    )


def _volume(rewards: tuple[str, ...], values: Any) -> dict[str, Any]:
    point = reference_point(values)
    return {
        "rewards": " ".join(rewards),
        "hypervolume": hypervolume(values, point),
        "reference_point": ", ".join(f"{v:.4g}" for v in point),
    }


def _best_of(name: str, evaluation: Evaluation, looks: Mapping[str, Look], beside: Beside) -> Markup:
    """What policies that draw at random would be worth with fewer draws to choose among, or more."""
    rows = list(evaluation.best_of())
    most = max((row["n"] for row in rows), default=1)
    if most < 2:
        return Markup("")
    policies, panels = list(dict.fromkeys(row["policy"] for row in rows)), {}
    powers = [2**e for e in range(0, most.bit_length(), 1 if most < 64 else 2)]  # their names have to stand apart
    names = {float(n): f"{n}\n{kl_bound(n):.2f}" for n in powers}
    for place in order(evaluation):
        reward = evaluation.rewards[place]
        series = []
        for p in policies:
            some = [row for row in rows if (row["policy"], row["judged_by"]) == (p, reward)]
            band = (
                ([r["reward_low"] for r in some], [r["reward_high"] for r in some]) if len(policies) <= BANDS else None
            )
            series.append(Curve(p, [r["n"] for r in some], [r["reward"] for r in some], looks[p], band))
        scale = Scale("n draws; beneath, log n - (n - 1) / n", "log", powers, names)
        ends = "; ".join(f"{c.name} from {c.y[0]:.3f} to {c.y[-1]:.3f} at {c.x[-1]:g}" for c in series)
        chooses = ", chooses" if reward == evaluation.chooser else ""
        panels[reward] = curves(
            series,
            f"{reward} ({part(evaluation, place)}{chooses})",
            scale,
            f"Mean reward of the best of n draws: {ends}.",
        )
    caption = (
        "The mean over all ways to choose so many of the draws of a prompt, unbiased for fresh ones. The reward of a policy's own "
        f"rule chooses, or {evaluation.chooser} where it has none. Beneath each n stands log n - (n - 1) / n, the most that "
        "choosing moves a policy from what it draws from."
        + (" Bands are intervals over prompts." if len(policies) <= BANDS else "")
    )
    figure = beside.figures(name, "best_of", panels, caption, rows)
    return Markup("<h4>The best of n draws</h4>{}").format(figure)


def _mode_connectivity(evaluation: Evaluation) -> Markup:
    """How far soups lie above the chord between their experts, and the least of it under each reward."""
    rows = [row for row in evaluation.rows() if "lmc_gap" in row]
    if not rows:
        return Markup("")
    least = []
    for reward in evaluation.rewards:
        some = [row for row in rows if row["judged_by"] == reward]
        lowest = min(some, key=lambda row: row["lmc_gap"])
        least.append(f"Least under {reward}: {spread(lowest, 'lmc_gap')}, of {lowest['policy']}.")
    cells = [[row["policy"], row["judged_by"], spread(row, "lmc_gap")] for row in rows]
    note = "Linear mode connectivity says that a soup lies on or above the chord between its experts: that its gap is 0 or more."
    return Markup("<h4>Soups against the chord between their experts</h4>{}{}{}").format(
        paragraph(note), bullets(least), table(["soup", "judged by", "gap"], cells, "gaps of linear mode connectivity")
    )


def _names(best: set[str], evaluation: Evaluation) -> str:
    return ", ".join(p for p in evaluation.policies if p in best)
