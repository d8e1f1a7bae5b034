"""What reads along with each token of a guided rule, for the plan: how many positions, how often, in how many branches."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from registry.artifacts import Artifact
from tasks.rules import Rule
from tasks.standing import is_model


@dataclass(frozen=True)
class Guide:
    """How a guide reads along with an answer's tokens."""

    artifact: Artifact | None
    width: float = 1.0
    """Positions that it reads to each token."""
    passes: float = 1.0
    """Calls to each token."""
    predicted: float = 0.0
    """Whether it gives logits."""
    branches: int = 1
    """Ways in which each answer is continued at once."""


def guides_of(rule: Rule) -> Sequence[Guide]:
    """What reads along, of a rule that is guided."""
    if rule.guided is None:
        return []
    entry: Any = rule.guided.entry
    inputs = rule.guided.inputs
    match entry.method:
        case "args":
            return [Guide(inputs["reward"][0], entry.candidates)]
        case "controlled_decoding":
            ways = entry.samples or 1
            return [
                Guide(one if is_model(one) else None, ways, predicted=1.0, branches=ways) for one in inputs["scorers"]
            ]
        case "genarm":
            return [Guide(one, predicted=1.0) for one in inputs["guides"]]
        case "mod":
            return [Guide(one, predicted=1.0) for one in inputs["policies"]]
        case "transfer_q":
            reward = inputs["reward"][0]
            ahead = entry.candidates * entry.look_ahead
            return [
                Guide(inputs["baseline"][0], ahead, entry.look_ahead, 1.0),
                Guide(reward if is_model(reward) else None, ahead),
            ]
        case _:
            return [Guide(inputs["reward"][0], 2.0)]
