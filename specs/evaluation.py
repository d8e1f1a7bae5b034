"""The comparison of policies: one set of prompts, one budget, the same random numbers, honest intervals."""

import re
from collections.abc import Callable
from operator import ge, gt, le, lt
from typing import Annotated, ClassVar, Literal

from pydantic import Field

from specs.base import Count, NotIdentity, Spec, form
from specs.references import EvaluationReward, Policy, Prompts
from specs.stage import Seeded

_BAR = re.compile(r"(>=|<=|>|<)\s*(-?[0-9]+(?:\.[0-9]+)?)")
_COMPARISONS: dict[str, Callable[[float, float], bool]] = {">=": ge, "<=": le, ">": gt, "<": lt}

Bar = Annotated[str, form(f"^{_BAR.pattern}$", "a bar is written `>= 0.55`, with >=, <=, > or <")]


def meets(bar: str, value: float) -> bool:
    """Whether `value` meets a bar such as `>= 0.55`."""
    found = _BAR.fullmatch(bar)
    assert found is not None  # the pattern of `Bar`
    return _COMPARISONS[found.group(1)](value, float(found.group(2)))


class Budget(Spec):
    """What each policy may spend on a prompt."""

    max_new_tokens: Count = 64
    """The most tokens of a response."""
    samples_per_prompt: Count = 2
    """Responses to each prompt; each counts as one draw of the policy, however many candidates it looked at. Policies
    share their random numbers, so a win rate compares a sample with those of other numbers: at least two are
    needed unless all but one policy are greedy."""


class Evaluate(Seeded):
    """Mean reward, win rate against a reference, and length of each policy, with paired bootstrap intervals over prompts."""

    produces: ClassVar[str] = "evaluation"

    do: Literal["evaluate"]
    policies: Annotated[tuple[Policy, ...], Field(min_length=1)]
    """The policies to compare."""
    against: Policy
    """The policy that win rates and differences are measured against."""
    prompts: Prompts
    """Held-out prompts."""
    rewards: Annotated[tuple[EvaluationReward, ...], Field(min_length=1)]
    """The rewards that judge."""
    budget: Budget = Budget()
    """What each policy may spend."""
    resamples: Annotated[int, Field(strict=True, ge=100)] = 2000
    """Bootstrap resamples of the prompts."""
    confidence: Annotated[float, Field(strict=True, gt=0, lt=1)] = 0.95
    """The coverage of the intervals."""
    expect: Annotated[dict[Policy, dict[str, Bar]], NotIdentity()] = {}
    """Bars to meet, by policy and metric: `{bon: {win_rate.gold: ">= 0.55"}}`. Metrics are
    `reward.<name>`, `win_rate.<name>` and `length`. A missed bar is exit status 3."""
