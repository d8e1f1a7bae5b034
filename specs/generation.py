"""Stages that generate and label responses."""

from typing import ClassVar, Literal

from pydantic import Field

from specs.base import Count, NonNegative
from specs.references import Policy, Prompts, Responses, TrainingReward
from specs.stage import Seeded, Stage


class Sample(Seeded):
    """Responses of a policy to prompts."""

    produces: ClassVar[str] = "responses"

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
