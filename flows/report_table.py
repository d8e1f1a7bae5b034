"""The table of a comparison: a row a policy, a group of columns a reward, what its answers are like and what they cost."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from markupsafe import Markup

from flows.beside import Beside
from flows.figures import Point, forest, glyph
from flows.page import Cell, Column, breakable, folded, paragraph, table
from flows.reward_roles import first_judge, order, part
from flows.theme import Look
from flows.wording import ESTIMATORS, count, duration, ends, number, p_value, spread
from tasks.evaluation_table import Evaluation
from tasks.lineage import Making

Rows = dict[tuple[str, str], dict[str, Any]]
ALIKE = "a position counts alike whichever model reads it"


def by_place(evaluation: Evaluation) -> Rows:
    """The evaluation's rows by policy and reward."""
    return {(row["policy"], row["judged_by"]): row for row in evaluation.rows()}


def ranked(evaluation: Evaluation) -> list[str]:
    """The policies, the one of highest reward first: by the reward that had the least part in them."""
    rows, judge = by_place(evaluation), evaluation.rewards[first_judge(evaluation)]
    return sorted(evaluation.policies, key=lambda policy: -rows[policy, judge]["reward"])


def main_table(name: str, evaluation: Evaluation, looks: Mapping[str, Look], beside: Beside) -> Markup:
    """Sorted by that reward; beside each value its interval as a bar on which the reference's value is marked."""
    rows = by_place(evaluation)
    about = {row["policy"]: row for row in evaluation.policy_rows()}
    judges = [evaluation.rewards[place] for place in order(evaluation)]
    columns: list[str | Column] = ["policy"]
    for place in order(evaluation):
        reward, words = evaluation.rewards[place], part(evaluation, place)
        falls = place == first_judge(evaluation)
        columns += [Column("reward", reward, words, falls), Column("win rate", reward, words)]
    columns.append(Column("KL, nats"))
    columns += [Column(what, "of an answer") for what in ("length, tokens", "tokens drawn", "positions", "time")]
    columns.append(Column("built in"))
    body = []
    for policy in ranked(evaluation):
        cells: list[Any] = [Cell(name_of(policy, looks, evaluation.reference), policy)]
        for reward in judges:
            cells += _judged(rows, policy, reward, evaluation)
        row = about[policy]
        cells += [
            _kl(evaluation, policy),
            Cell(_with_ends(row, "length", 1), row["length"]),
            Cell(count(row["tokens_per_answer"]), row["tokens_per_answer"]),
            Cell(count(row["positions_per_answer"]), row["positions_per_answer"]),
            Cell(duration(row["seconds_per_answer"]), row["seconds_per_answer"]),
            _built_in(evaluation.making[evaluation.policies.index(policy)]),
        ]
        body.append(cells)
    percent = f"{100 * evaluation.results['confidence']:g}"
    note = (
        f"Sorted by {judges[0]}. Intervals are {percent} % BCa bootstrap over prompts; win rates are paired with "
        f"{evaluation.reference}, whose mean reward is the dashed mark on each bar. A reward that guides a policy, or taught its "
        f"guide, says so beside the value. KL is that of a policy's whole answers from the model of {evaluation.reference}, in nats. "
        "Positions are what the policy's model and its guides read and wrote, over all draws of an answer; built in, the time of "
        "all stages below the policy (of one that was resumed, its last attempt; at least so long where not all are stored here)."
    )
    files = beside.numbers(name, list(evaluation.rows())), beside.numbers(f"{name}.policies", list(about.values()))
    links = Markup(" Numbers: <a href='{0}'>{0}</a>, <a href='{1}'>{1}</a>").format(*files)
    return Markup("{}{}").format(
        table(columns, body, f"{name}: the comparison", sortable=True), paragraph(note + links, "quiet")
    )


def name_of(policy: str, looks: Mapping[str, Look], reference: str = "") -> Markup:
    """A policy's name with its marker."""
    note = Markup(" <small>(reference)</small>") if policy == reference else ""
    return Markup("<span class=policy>{}<span>{}{}</span></span>").format(glyph(looks[policy]), breakable(policy), note)


def _judged(rows: Rows, policy: str, reward: str, evaluation: Evaluation) -> list[Cell]:
    row = rows[policy, reward]
    bar = _bar(row, rows[evaluation.reference, reward]["reward"], [r for (_, by), r in rows.items() if by == reward])
    role = row["reward_had_part"]
    mark = Markup(" <span class=part>{}</span>").format(role) if role != "held out" else ""
    interval = ends(row["reward_low"], row["reward_high"])
    value = Markup("{}{}<br><small>{}</small>{}").format(number(row["reward"]), bar, interval, mark)
    return [Cell(value, row["reward"]), Cell(_with_ends(row, "win_rate"), row["win_rate"])]


def _with_ends(row: Mapping[str, Any], what: str, digits: int = 3) -> Markup:
    interval = ends(row[f"{what}_low"], row[f"{what}_high"], digits)
    return Markup("{}<br><small>{}</small>").format(number(row[what], digits), interval)


def _kl(evaluation: Evaluation, policy: str) -> Cell:
    found = evaluation.kl(policy)
    if found is None:
        return Cell(Markup("<small>not known</small>"))
    name, value = found
    words = ESTIMATORS[name]
    estimate = number(value["estimate"])
    shown = f"{words} {estimate}" if name == "bound" else estimate
    interval = ends(value["low"], value["high"])
    text = Markup("{}<br><small>{}</small>") if name == "bound" else Markup("{}<br><small>{}<br>{}</small>")
    return Cell(text.format(shown, interval, words), value["estimate"])


def _built_in(made: Making) -> Cell:
    return Cell(f"{'' if made.is_all else 'at least '}{duration(made.seconds)}", made.seconds)


def _bar(row: Mapping[str, Any], reference: float, rows: Sequence[Mapping[str, Any]]) -> Markup:
    """The interval on the scale of all policies under the same reward. The numbers stand beside it."""
    low, high = min(r["reward_low"] for r in rows), max(r["reward_high"] for r in rows)

    def at(value: float) -> str:
        return f"{4 + 76 * (value - low) / ((high - low) or 1):.1f}"

    drawn = (
        "<svg class=bar viewBox='0 0 84 16' aria-hidden=true><line class=mark x1={m} x2={m} y1=1 y2=15 />"
        "<line x1={l} x2={h} y1=8 y2=8 /><circle cx={v} cy=8 r=3.5 /></svg>"
    )
    return Markup(drawn).format(m=at(reference), l=at(row["reward_low"]), h=at(row["reward_high"]), v=at(row["reward"]))


def differences(name: str, evaluation: Evaluation, looks: Mapping[str, Look], beside: Beside) -> Markup:
    """A panel a reward: how far each policy is from the reference."""
    rows, panels = by_place(evaluation), {}
    others = [policy for policy in ranked(evaluation) if policy != evaluation.reference]
    if not others:
        return Markup("")
    for place in order(evaluation):
        reward = evaluation.rewards[place]
        points = [
            Point(p, r["difference"], 0, looks[p], x_ends=(r["difference_low"], r["difference_high"]))
            for p in others
            for r in (rows[p, reward],)
        ]
        about = "; ".join(f"{p} {spread(rows[p, reward], 'difference')}" for p in others)
        title = f"{reward} ({part(evaluation, place)})"
        panels[reward] = forest(points, title, f"difference to {evaluation.reference}", f"Paired differences: {about}.")
    caption = f"The paired difference of mean reward to {evaluation.reference} and its interval; right of the dashed line is more."
    shown = [
        {what: row[what] for what in ("policy", "judged_by", "difference", "difference_low", "difference_high")}
        for row in evaluation.rows()
        if row["policy"] in others
    ]
    return beside.figures(name, "difference", panels, caption, shown)


def every_number(evaluation: Evaluation) -> Markup:
    """The rest of what was measured: by policy and reward, and by policy."""
    first = ["policy", "judged by", "part", "difference", "strict win rate"]
    named = ["length_bias", "lmc_gap"]
    measured = [*evaluation.inference, *(what for what in named if any(what in row for row in evaluation.rows()))]
    judged = [
        [
            row["policy"], row["judged_by"], row["reward_had_part"], spread(row, "difference"), spread(row, "strict_win_rate"),
            *(spread(row, what) if what in row else "" for what in measured),
            *(p_value(row[what]) if what in row else "" for what in ("p", "p_holm")),
            f"{row['detectable']:.3f}" if "detectable" in row else "",
        ]
        for row in evaluation.rows()
    ]  # fmt: skip
    tests = ("permutation test", "with all policies counted (Holm)", "detectable four times in five")
    by_reward = table(
        [*first, *(_words(what) for what in measured), *tests], judged, "all numbers by policy and reward"
    )
    rows = list(evaluation.policy_rows())
    low = [key.removesuffix("_low") for row in rows for key in row if key.endswith("_low")]
    texts = [what for what in dict.fromkeys(low) if what != "length"]
    counts = [key for key in rows[0] if key.endswith("_per_answer") and "seconds" not in key]
    cells = [
        [
            row["policy"],
            *(spread(row, what) if what in row else "" for what in texts),
            *(count(row[what]) for what in counts),
            duration(row["device_seconds_per_answer"]),
            f"{row['peak_memory'] / 1e6:,.0f} MB",
        ]
        for row in rows
    ]
    heads = ["policy", *(_words(what, evaluation.reference) for what in (*texts, *counts))]
    return folded(
        "Every number: tests, strict win rates, what the texts are like, costs",
        by_reward,
        table([*heads, "device time per answer", "peak memory"], cells, "all numbers by policy"),
    )


def _words(name: str, reference: str = "") -> str:
    told = {
        "perplexity_own": f"perplexity: own answers under the model of {reference}",
        "perplexity_given": "perplexity: given answers under the policy",
        "texts_scored_per_answer": "whole texts scored per answer",  # guides of tokens read no text again from its beginning
    }
    words = name.replace("kl_", "KL: ").replace("_", " ")
    return told.get(name, words.replace("rao blackwell", "Rao-Blackwell").replace("lmc", "LMC"))
