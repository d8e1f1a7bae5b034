"""Stages that generate and label responses."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING, ClassVar, Literal

from pydantic import Field

from specs.base import Count, NonNegative
from specs.problems import Path
from specs.references import Policy, Prompts, Responses, TrainingReward
from specs.stage import Seeded, Stage

if TYPE_CHECKING:
    from specs.graph import Graph


class Sample(Seeded):
    """Responses of a policy to prompts."""

    produces: ClassVar[str] = "responses"
    version: ClassVar[int] = 2

    do: Literal["sample"]
    from_: Policy = Field(alias="from")
    """The policy that answers."""
    prompts: Prompts
    """The prompts it answers."""
    samples: Count = 1
    """Responses to each prompt."""
    max_new_tokens: Count = 64
    """The most tokens of a response; one that reaches it is marked unfinished."""


class Label(Stage):
    """Preference pairs made of sampled responses by a reward: best against worst, second best against second worst, ..."""

    produces: ClassVar[str] = "preference pairs"
    version: ClassVar[int] = 2

    do: Literal["label"]
    responses: Responses
    """The responses to compare."""
    reward: TrainingReward
    """The reward that decides which is better."""
    pairs_per_prompt: Count = 1
    """At most so many pairs from the responses to one prompt; each response is in one pair at most."""
    min_gap: NonNegative = 0.0
    """A pair's rewards differ by more than this; ties never make a pair."""

    def problems(self, graph: Graph) -> Iterator[tuple[Path, str]]:
        for member in graph.members(self.responses):
            if getattr(graph.nodes[member].entry, "samples", 2) < 2:
                yield (
                    ("responses",),
                    f"a pair takes two responses to a prompt, and `{member}` has one; raise its `samples`",
                )
