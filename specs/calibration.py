"""Reward calibration and transformation (InfAlign-CTRL, Balashankar et al., arXiv 2412.19792)."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING, Annotated, ClassVar, Literal, Self

from pydantic import Field, model_validator

from specs.base import Count, Positive, Spec
from specs.decoding import DecodeSample
from specs.problems import Path
from specs.references import AnyReward, Policy, Prompts
from specs.stage import Seeded

if TYPE_CHECKING:
    from specs.graph import Graph


class Calibrate(Seeded):
    """A reward's rank among rollouts of a reference to the same prompt: the share of rollouts that score lower, ties
    counting one half. A number in [0, 1], uniform for the reference itself. A prompt that was not calibrated gets the
    mean of that rank over the prompts that were."""

    produces: ClassVar[str] = "calibrated reward"
    version: ClassVar[int] = 2
    made_of: ClassVar[tuple[str, ...]] = ("reward",)

    do: Literal["calibrate"]
    reward: AnyReward
    """The reward to calibrate; one kept for evaluation stays kept for evaluation."""
    reference: Policy
    """The policy whose rollouts are the yardstick; what `rl` starts from."""
    prompts: Prompts
    """The prompts to calibrate."""
    samples: Annotated[int, Field(strict=True, ge=2)] = 64
    """Rollouts to each prompt. One more is drawn to test that the calibrated reward is uniform."""
    max_new_tokens: Count = 64
    """The most tokens of a rollout; the same as where the calibrated reward is used."""

    def problems(self, graph: Graph) -> Iterator[tuple[Path, str]]:
        for member in graph.members(self.reference):
            if not graph.nodes[member].entry.is_random:
                message = "gives one answer again and again, so its rollouts would all tie; name a policy that samples"
                yield ("reference",), f"`{member}` {message}"


def calibrations(graph: Graph, reward: str) -> Iterator[tuple[str, Calibrate]]:
    """The calibrated rewards that a reference means or has in a sum, by name."""
    seen, waiting = set(), graph.members(reward)
    while waiting:
        name, *waiting = waiting
        entry = graph.nodes[name].entry
        if isinstance(entry, Calibrate):
            yield name, entry
        elif name not in seen:
            waiting += graph.parts_of(name)
        seen.add(name)


def reference_problems(graph: Graph, reward: str, start: str) -> Iterator[tuple[Path, str]]:
    """Calibrated rewards that are not uniform for the model which a stage starts from and whose divergence it weighs."""
    for name, calibration in calibrations(graph, reward):
        for member in graph.members(calibration.reference):
            if graph.members(start) and graph.members(start) != _sampled_as_it_is(graph, member):
                yield (
                    ("reward",),
                    f"`{name}` ranks among rollouts of `{member}`, and this stage starts from `{start}`, sampled at "
                    f"temperature 1 from the whole vocabulary; calibrate with `reference: {start}`",
                )


def _sampled_as_it_is(graph: Graph, policy: str) -> list[str]:
    """The language model that a policy samples from without a change."""
    rule = graph.nodes[policy].entry
    if not isinstance(rule, DecodeSample):
        return [policy]
    return graph.members(rule.from_) if (rule.temperature, rule.top_k, rule.top_p) == (1, 0, 1) else []


class Identity(Spec):
    """The calibrated reward as it is: best for the plain win rate."""

    kind: Literal["identity"]


class _ForManyDraws(Spec):
    n: Annotated[int, Field(strict=True, ge=2)] | None = None
    """How many draws it will be: the transform is the exact optimum for them at the stage's `beta`."""
    t: Positive | None = None
    """In place of `n`, the rate of an exponential: e^{t(u-1)} for the best of the draws, -e^{-tu} for the worst. The paper's
    10 is near the optimum for 4 draws at the same divergence, for which `beta` is to be larger."""

    @model_validator(mode="after")
    def _has_one_form(self) -> Self:
        if (self.n is None) == (self.t is None):
            raise ValueError("takes `n`, for the exact optimum, or else `t`, for the exponential")
        return self


class ForBestOfN(_ForManyDraws):
    """For a policy that will be used with best-of-n."""

    kind: Literal["best_of_n"]


class ForWorstOfN(_ForManyDraws):
    """For a policy of which an adversary will pick the worst of n."""

    kind: Literal["worst_of_n"]


class Logarithm(Spec):
    """log u of the smoothed calibrated reward (M u + 1/2)/(M + 1): with `beta: 1/(n-1)` its optimum is the best-of-n
    policy itself."""

    kind: Literal["log"]


Transform = Annotated[Identity | ForBestOfN | ForWorstOfN | Logarithm, Field(discriminator="kind")]
