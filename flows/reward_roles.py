"""Which reward is looked at first, and what part each had in the policies that it judges."""

from __future__ import annotations

from tasks.evaluation_table import Evaluation
from tasks.lineage import Role

INVOLVED: tuple[Role, ...] = ("held out", "behind the guide", "same labels", "guides")
"""From a judge outside to the one that was aimed at."""


def first_judge(evaluation: Evaluation) -> int:
    """The place of the reward that had the least part in the policies, and of several the first: a reward that guided
    says how well it was pleased, and no more."""
    parts = [max(INVOLVED.index(role[place]) for role in evaluation.roles) for place in range(len(evaluation.rewards))]
    return parts.index(min(parts))


def order(evaluation: Evaluation) -> list[int]:
    """The places of the rewards as they are looked at: that one first, the others in their order."""
    first = first_judge(evaluation)
    return [first, *(place for place in range(len(evaluation.rewards)) if place != first)]


def part(evaluation: Evaluation, place: int) -> str:
    """What part a reward had in the policies, in words: `held out`, `guides 3 of 5`, `behind the guide of bon`."""
    found = {
        kind: [name for name, roles in zip(evaluation.policies, evaluation.roles, strict=True) if roles[place] == kind]
        for kind in INVOLVED[::-1]
    }
    total = len(evaluation.policies)
    words = []
    links: dict[Role, str] = {
        "guides": "guides ", "behind the guide": "behind the guide of ", "same labels": "learnt from the same labels as ",
    }  # fmt: skip
    for kind, link in links.items():
        if names := found[kind]:
            words.append(link + (", ".join(names) if len(names) < 3 else f"{len(names)} of {total}"))
    return "; ".join(words) or "held out"
