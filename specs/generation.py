"""Stages that generate and label responses, and decoding rules.

A `decode` stage is a policy: it defines a rule and generates nothing until something samples from it, so
every method is compared through one door. A language model named as a policy is sampled at temperature 1.
"""

from typing import Annotated, ClassVar, Literal

from pydantic import Field

from specs.base import Count, NonNegative, Positive, Probability, WholeNumber
from specs.references import (
    GuidanceReward,
    LanguageModel,
    Policy,
    Prompts,
    Responses,
    TrainingReward,
)
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


class _Decode(Stage):
    produces: ClassVar[str] = "decoding rule"

    do: Literal["decode"]
    from_: LanguageModel = Field(alias="from")
    """The language model that the rule decodes."""


class _Sampled(_Decode):
    temperature: Positive = 1.0
    """Divides the logits."""
    top_k: WholeNumber = 0
    """Keep only the k most probable tokens; 0 keeps all."""
    top_p: Probability = 1.0
    """Keep the smallest set of most probable tokens whose mass reaches this; 1 keeps all."""


class DecodeSample(_Sampled):
    """Ancestral sampling."""

    method: Literal["sample"]


class DecodeGreedy(_Decode):
    """The most probable token at each step (the lowest id on a tie)."""

    is_random: ClassVar[bool] = False

    method: Literal["greedy"]


class DecodeBestOfN(_Sampled):
    """The response of highest reward among n samples (the first on a tie). With the same seed the
    samples of a smaller n are among those of a larger one."""

    method: Literal["best_of_n"]
    reward: GuidanceReward
    """The reward that chooses."""
    n: Annotated[int, Field(strict=True, ge=2)]
    """How many samples it chooses from."""


Decode = Annotated[DecodeSample | DecodeGreedy | DecodeBestOfN, Field(discriminator="method")]
