"""Answers side by side: where each policy gained most on the reference and where it lost most, with all their scores."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any, NamedTuple

from markupsafe import Markup

from flows.page import folded, joined, paragraph, section
from flows.report_table import name_of, ranked
from flows.reward_roles import first_judge, order
from flows.theme import Look
from tasks.evaluation_table import Evaluation

SHOWN = 3
"""Prompts at which a policy gained most, and as many at which it lost most."""


class Pair(NamedTuple):
    """A policy's answer and the reference's of the same number to the same prompt."""

    answer: Mapping[str, Any]
    reference: Mapping[str, Any]
    gain: float


def pairs(evaluation: Evaluation, answers: Sequence[Mapping[str, Any]], policy: str, reward: str) -> list[Pair]:
    """All pairs of a policy, those that gained most first. `answers` are the rows of `generations`, in their order."""
    a_prompt = len(evaluation.policies) * evaluation.results["samples_per_prompt"]
    places: dict[tuple[int, int], dict[str, Mapping[str, Any]]] = {}
    for number, row in enumerate(answers):
        places.setdefault((number // a_prompt, row["sample"]), {})[row["policy"]] = row
    found = [
        Pair(ours, theirs, ours[f"reward.{reward}"] - theirs[f"reward.{reward}"])
        for at in places.values()
        for ours, theirs in ((at[policy], at[evaluation.reference]),)
    ]
    return sorted(found, key=lambda pair: -pair.gain)


def most(found: Sequence[Pair]) -> list[Pair]:
    """The first few that gained, no two at one prompt."""
    chosen: dict[tuple[str, str], Pair] = {}
    for pair in found:
        if pair.gain > 0 and len(chosen) < SHOWN:
            chosen.setdefault((pair.answer["prompt"], pair.answer["dialogue"]), pair)
    return list(chosen.values())


def side_by_side(evaluation: Evaluation, answers: Sequence[Mapping[str, Any]], looks: Mapping[str, Look]) -> Markup:
    """A fold for each policy but the reference."""
    judge = evaluation.rewards[first_judge(evaluation)]
    folds: list[Markup] = []
    for policy in ranked(evaluation):
        if policy == evaluation.reference:
            continue
        found = pairs(evaluation, answers, policy, judge)
        gained = most(found)
        lost = [p._replace(gain=-p.gain) for p in most([p._replace(gain=-p.gain) for p in reversed(found)])]
        higher, lower = (sum(sign * pair.gain > 0 for pair in found) for sign in (1, -1))
        summary = Markup("{} <small>{} of {} answers score higher than the reference's, {} lower</small>").format(
            name_of(policy, looks), higher, len(found), lower
        )
        parts = list(_shown("Gained most", gained, evaluation, policy, judge))
        parts += _shown("Lost most", lost, evaluation, policy, judge)
        folds.append(folded(summary, *parts, is_open=not folds))
    if not folds:
        return Markup("")
    note = f"By {judge}, against the answer of {evaluation.reference} with the same number to the same prompt."
    return section("Best and worst answers", paragraph(note, "quiet"), joined(folds), level=3)


def _shown(title: str, chosen: Sequence[Pair], evaluation: Evaluation, policy: str, judge: str) -> Iterator[Markup]:
    if not chosen:
        yield paragraph(f"{title}: no answer did.", "quiet")
        return
    yield Markup("<h4>{}</h4>").format(title)
    for pair in chosen:
        change = f"{judge} {pair.gain:+.3f}"
        yield Markup("<p class=prompt>{} <span class=part>{}</span></p>{}<div class=answers>{}{}</div>").format(
            pair.answer["prompt"], change, before(pair.answer["dialogue"]), *(
                _answer(name, row, evaluation) for name, row in ((policy, pair.answer), (evaluation.reference, pair.reference))
            )
        )  # fmt: skip


def before(dialogue: str) -> Markup:
    """A dialogue of several turns, of which the last stands above."""
    text = Markup("<div class=said tabindex=0>{}</div>").format(dialogue)
    return folded("The whole dialogue", text) if dialogue else Markup("")


def _answer(name: str, row: Mapping[str, Any], evaluation: Evaluation) -> Markup:
    scores = ", ".join(
        f"{reward} {row[f'reward.{reward}']:.3f}" for reward in (evaluation.rewards[i] for i in order(evaluation))
    )
    cut = "" if row["finished"] else ", cut off"
    text = Markup(
        "<div class=answer><b>{}</b> <small>{} tokens{}</small><div class=said tabindex=0>{}</div><small>{}</small></div>"
    )
    return text.format(name, row["tokens"], cut, row["response"], scores)
