"""Stages that learn from preferences: the autoregressive reward model, DPO, QRPO."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING, Annotated, ClassVar, Literal

from pydantic import Field, model_validator

from specs.base import Count, NonNegative, Positive
from specs.calibration import Identity, Transform, calibrations, reference_problems
from specs.generation import Label, Sample
from specs.problems import Path
from specs.references import CalibratedReward, PairsOrResponses, PreferencePairs, Prompts, TrainingReward
from specs.rounds import Rounds
from specs.training import TrainingOnTexts

if TYPE_CHECKING:
    from specs.graph import Graph


class AutoregressiveRewardModel(TrainingOnTexts):
    """A language model as a reward, r(x, y) = sum over t of log pi_r(y_t | x, y_<t): a number for every next token (GenARM, Xu
    et al., arXiv 2410.08193). Trained on P(chosen preferred) = sigmoid(beta (r_chosen - r_rejected)), with no reference
    and no division by length."""

    produces: ClassVar[str] = "autoregressive reward model"
    version: ClassVar[int] = 2

    do: Literal["autoregressive_reward_model"]
    data: PreferencePairs
    """Pairs to learn from."""
    test: PreferencePairs | None = None
    """Held-out pairs: accuracy is reported on them beside the rule that the longer answer wins.
    They are part of the stage: with others it is trained anew."""
    beta: Positive = 0.05
    """The inverse temperature of the Bradley-Terry model; r sums over tokens, so it is small."""


class DPO(Rounds):
    """Direct preference optimisation (Rafailov et al., 2023) with TRL's trainer; the reference is the model that the
    stage starts from, in later rounds that of the round before. On given pairs, or on the best and the worst of its own
    samples, round by round."""

    produces: ClassVar[str] = "language model"
    version: ClassVar[int] = 3

    do: Literal["dpo"]
    data: PreferencePairs | None = None
    """Pairs to learn from; or leave it out and give `prompts` and `reward`."""
    prompts: Prompts | None = None
    """Prompts to which each round samples its own pairs."""
    reward: TrainingReward | None = None
    """The reward that tells the best of the samples from the worst."""
    samples: Annotated[int, Field(strict=True, ge=2)] = 8
    """Samples to each prompt."""
    max_new_tokens: Count = 64
    """The most tokens of a sample."""
    min_gap: NonNegative = 0.0
    """Best and worst differ in reward by more than this; ties never make a pair."""
    beta: Positive = 0.1
    """The weight of the KL divergence from the reference; in `rounds`, of each round's own step."""

    @model_validator(mode="after")
    def _has_one_source(self) -> DPO:
        if (self.data is None) == (self.prompts is None) or (self.prompts is None) != (self.reward is None):
            raise ValueError("takes pairs from `data`, or makes its own from `prompts` and `reward`")
        if self.data is not None and self.rounds > 1:
            raise ValueError("several rounds draw new pairs from `prompts` and `reward`; `data` has one round in it")
        return self

    def problems(self, graph: Graph) -> Iterator[tuple[Path, str]]:
        for key in ("samples", "max_new_tokens", "min_gap") if self.data is not None else ():
            if getattr(self, key) != DPO.model_fields[key].default:
                yield (key,), "is for pairs that the stage draws itself, and `data` has its own; leave it out"


class QRPO(TrainingOnTexts):
    """Quantile reward policy optimisation (Matrenok et al., arXiv 2507.08068): regression of beta log(pi / pi_ref) on the
    calibrated reward less its log-partition; CTRL without sampling. The reference is the model it starts from. Each prompt
    has a log-partition of its own: from its rollouts, each ranked among the others of them. So it is right where rewards
    tie, and every prompt of the data must be one that was calibrated."""

    produces: ClassVar[str] = "language model"
    version: ClassVar[int] = 2

    do: Literal["qrpo"]
    data: PairsOrResponses
    """Answers to learn from, good and bad: sampled responses, or both sides of pairs."""
    reward: CalibratedReward
    """The calibrated reward, whose reference is the model that training starts from."""
    transform: Transform = Identity(kind="identity")
    """What is maximised: a transformation of the calibrated reward."""
    beta: Positive = 0.1
    """The weight of the KL divergence from the reference."""

    def problems(self, graph: Graph) -> Iterator[tuple[Path, str]]:
        yield from reference_problems(graph, self.reward, self.from_)
        for member, sampled in _samples(graph, self.data):
            for name, calibration in calibrations(graph, self.reward):
                if sampled.max_new_tokens != calibration.max_new_tokens:
                    yield (
                        ("data",),
                        f"`{name}` ranks among rollouts of at most {calibration.max_new_tokens} tokens, and the answers of "
                        f"`{member}` have at most {sampled.max_new_tokens}; give both the same `max_new_tokens`",
                    )
                if graph.are_apart(sampled.prompts, calibration.prompts):
                    yield (
                        ("data",),
                        f"`{member}` answers `{sampled.prompts}`, and `{name}` was calibrated on `{calibration.prompts}`: each "
                        "prompt needs a log-partition of its own; give both the same `prompts`",
                    )


def _samples(graph: Graph, data: str) -> Iterator[tuple[str, Sample]]:
    """The stages that sampled the answers of `data`, by name."""
    for member in graph.members(data):
        entry = graph.nodes[member].entry
        if isinstance(entry, Sample):
            yield member, entry
        elif isinstance(entry, Label):
            yield from _samples(graph, entry.responses)
