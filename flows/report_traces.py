"""What guided policies looked at before each choice, where an evaluation kept it."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from markupsafe import Markup

from flows.page import folded, joined, paragraph, section, table, words
from flows.report_generations import before
from registry.artifacts import Artifact
from tasks.evaluation_table import TRACES, Evaluation, generations
from tasks.inputs import read_lines
from tasks.lineage import guides_of

OTHERS = 3
"""Candidates that are shown beside the one that was taken."""


def traces(evaluation: Evaluation, artifact: Artifact) -> Markup:
    """A fold for each answer that was traced; empty where none was."""
    assert artifact.folder is not None
    path = artifact.folder / TRACES
    if not path.exists():
        return Markup("")
    policies = [*artifact.inputs["policies"], artifact.one("against")]
    # The prompt that is traced is the first.
    dialogue = before(next(generations(artifact, evaluation.policies, evaluation.rewards))["dialogue"])
    folds = [
        folded(
            evaluation.policies[row["policy"]],
            paragraph(row["prompt"], "prompt"),
            dialogue,
            *_told(row["events"], guides),
        )
        for row in read_lines(path)
        for guides in (guides_of(policies[row["policy"]]),)
    ]
    if not folds:
        return Markup("")
    note = "One answer of each guided policy, choice by choice: what stood to choose from, what the guides gave it, what was taken."
    return section("Guidance, token by token", paragraph(note, "quiet"), joined(folds), level=3)


def _told(events: Sequence[Mapping[str, Any]], guides: Sequence[str]) -> Iterator[Markup]:
    """An answer's events, which are all of one form."""
    tokens = [e for e in events if "candidates" in e]
    if tokens:
        yield from _tokens(tokens, guides)
    branches = [(e["step"], one) for e in events for one in e.get("branches", ())]
    if branches:
        rows = [
            [step, words(_text(one["text"])), f"{one['score']:.3f}", _taken(one["chosen"])] for step, one in branches
        ]
        yield table(["token", "a block might go on with", "score", "taken"], rows, "blocks")
    segments = [(e["step"], e["segment"]) for e in events if "segment" in e]
    if segments:
        rows = [
            [step, words(_text(one["text"])), f"{one['reward']:.3f}", f"{one['threshold']:.3f}", one["verdict"]]
            for step, one in segments
        ]
        yield table(["token", "segment tried", "reward", "threshold", "verdict"], rows, "segments")
    draws = [one for e in events for one in e.get("draws", ())]
    if draws:
        rows = [
            [one["draw"], words(_text(one["text"])), f"{one['reward']:.3f}", _taken(one["chosen"])] for one in draws
        ]
        yield table(["draw", "answer", "reward", "taken"], rows, "draws")


def _tokens(events: Sequence[Mapping[str, Any]], guides: Sequence[str]) -> Iterator[Markup]:
    """A row a token. Where it is not the policy's own most probable candidate, that is said."""
    moved, rows = 0, []
    for event in events:
        taken = next(c for c in event["candidates"] if c["chosen"])
        likeliest = max(event["candidates"], key=lambda c: c["log_prob"])
        is_moved = likeliest is not taken
        moved += is_moved
        others = sorted((c for c in event["candidates"] if c is not taken), key=lambda c: -c["share"])[:OTHERS]
        beside = ", ".join(f"{c['token']!r} {c['share']:.2f}" for c in others)
        rows.append([
            event["step"],
            _text(taken["token"]),
            f"{taken['log_prob']:.3f}",
            *(f"{score:.3f}" for score in taken["scores"]),
            f"{taken['share']:.3f}",
            _text(likeliest["token"]) if is_moved else "the same",
            beside,
        ])  # fmt: skip
    said = f"{moved} of {len(rows)} tokens are not the policy's own most probable candidate."
    given = (
        guides
        if len(guides) == len(events[0]["candidates"][0]["scores"])
        else [""] * len(events[0]["candidates"][0]["scores"])
    )
    heads = ["step", "token taken", "log p", *(f"score by {guide}" if guide else "score" for guide in given)]
    yield paragraph(said)
    yield table([*heads, "share", "most probable without guidance", "others, with their shares"], rows, "tokens")


def _text(text: str) -> Markup:
    """White space can be seen in it."""
    return Markup("<code>{}</code>").format(text.replace(" ", "\u00b7").replace("\n", "\u21b5"))


def _taken(is_taken: bool) -> str:
    return "taken" if is_taken else ""
