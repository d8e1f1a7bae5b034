"""The comparison at equal spending: what each policy's best answer is worth where all may draw for as much as the dearest costs."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np
from markupsafe import Markup

from flows.beside import Beside
from flows.page import paragraph, switch, table
from flows.report_table import ALIKE, by_place, name_of, ranked
from flows.reward_roles import order
from flows.theme import Look
from flows.wording import count, spread
from registry.methods.equal_spending import affordable_draws
from tasks.evaluation_table import Evaluation

MEASURES = {"draws": "equal samples", "tokens": "equal tokens", "positions": "equal compute"}


def at_equal_spending(evaluation: Evaluation) -> Iterator[dict[str, Any]]:
    """One row for each measure, policy and reward: the draws that one answer of the dearest policy pays for, at how many of
    them the value is read (no more than were drawn), and the value. A policy without randomness gives its one answer."""
    curves: dict[tuple[str, str], dict[int, dict[str, Any]]] = {}
    for point in evaluation.best_of():
        curves.setdefault((point["policy"], point["judged_by"]), {})[point["n"]] = point
    rows = by_place(evaluation)
    samples = evaluation.results["samples_per_prompt"]
    drawn = {p: len(curves.get((p, evaluation.rewards[0]), {})) for p in evaluation.policies}
    each = np.array([max(drawn[p] // samples, 1) for p in evaluation.policies], dtype=float)
    about = list(evaluation.policy_rows())
    costs = {
        "draws": each,
        "tokens": np.array([row["tokens_per_answer"] for row in about]),
        "positions": np.array([row["positions_per_answer"] for row in about]),
    }
    once = np.array([row["fixed_positions_per_answer"] for row in about])
    for measure, cost in costs.items():
        fixed = once if measure == "positions" else np.zeros_like(cost)
        if (cost - fixed).min() <= 0:
            continue
        paid = affordable_draws(cost, each, fixed).tolist()
        for policy, own, draws in zip(evaluation.policies, cost, paid, strict=True):
            read = min(draws, drawn[policy]) if drawn[policy] else 1
            for reward in evaluation.rewards:
                found = curves[policy, reward][read] if drawn[policy] else rows[policy, reward]
                value = {key: found[key] for key in ("reward", "reward_low", "reward_high")}
                row = {"measure": measure, "policy": policy, "judged_by": reward, "cost_of_an_answer": float(own)}
                yield row | {"affordable_draws": draws, "drawn": drawn[policy], "read_at": read} | value


def equal_spending(name: str, evaluation: Evaluation, looks: Mapping[str, Look], beside: Beside) -> Markup:
    """A table a measure, one at a time."""
    rows = list(at_equal_spending(evaluation))
    if len(evaluation.policies) < 2 or not rows:
        return Markup("")
    choices = []
    for measure, label in MEASURES.items():
        some = [row for row in rows if row["measure"] == measure]
        if some:
            choices.append((label, _table(evaluation, measure, some, looks)))
    note = (
        "What each policy is worth where it may draw as often as one answer of the dearest pays for, and keeps the best by its "
        f"own reward, or by {evaluation.chooser} where it has none (calls of that reward are not counted as compute). "
        f"Compute is positions, and {ALIKE}. Where "
        "fewer were drawn than could be paid for, the value is read at all that were; under the reward "
        "that chooses, more draws can only raise it."
    )
    link = Markup(" Numbers: <a href='{0}'>{0}</a>").format(beside.numbers(f"{name}.equal", rows))
    return Markup("{}{}").format(paragraph(note + link, "quiet"), switch(f"{name}-equal", choices))


def _table(evaluation: Evaluation, measure: str, rows: list[dict[str, Any]], looks: Mapping[str, Look]) -> Markup:
    found = {(row["policy"], row["judged_by"]): row for row in rows}
    dearest = max(rows, key=lambda row: row["cost_of_an_answer"])
    judges, body = [evaluation.rewards[place] for place in order(evaluation)], []
    for policy in ranked(evaluation):
        one = found[policy, evaluation.rewards[0]]
        body.append([
            name_of(policy, looks, evaluation.reference),
            count(one["cost_of_an_answer"]),
            f"{one['affordable_draws']:,}",
            _read_at(one),
            *(spread(found[policy, reward], "reward") for reward in judges),
        ])  # fmt: skip
    named = [f"{judge}, which chooses" if judge == evaluation.chooser else judge for judge in judges]
    heads = ["policy", f"{measure} of an answer", "draws paid for", "read at", *named]
    said = f"The dearest answer is that of {dearest['policy']}: {count(dearest['cost_of_an_answer'])} {measure}."
    return Markup("{}{}").format(paragraph(said, "quiet"), table(heads, body, f"at {MEASURES[measure]}"))


def _read_at(row: Mapping[str, Any]) -> str:
    if not row["drawn"]:
        return "its one answer"
    return f"{row['read_at']:,}" + ("" if row["read_at"] == row["affordable_draws"] else ", all there are")
