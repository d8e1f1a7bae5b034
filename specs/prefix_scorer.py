"""Prefix scorers: what an unfinished answer is worth, for controlled decoding (Mudgal et al., arXiv 2310.17022)."""

from typing import Annotated, ClassVar, Literal

from pydantic import Field

from specs.references import LanguageModel, PreferencePairs, Responses, TrainingReward
from specs.training import TrainingOnTexts


class _PrefixScorer(TrainingOnTexts):
    produces: ClassVar[str] = "prefix scorer"
    version: ClassVar[int] = 2

    do: Literal["prefix_scorer"]


class FudgeScorer(_PrefixScorer):
    """CD-FUDGE: every prefix of a response is regressed on the reward of the whole. Its target is the expected reward of
    the policy that the responses came from, which is to be the one that will be controlled."""

    loss: Literal["cd_fudge"]
    head: Literal["scalar", "vocabulary"] = "vocabulary"
    """`scalar` scores the prefix that was read, `vocabulary` at once each token that may follow it."""
    responses: Responses
    """Sampled responses."""
    reward: TrainingReward
    """The reward of a whole response; an unfinished one is scored as it stands."""
    reference: LanguageModel | None = None
    """The policy that will be controlled; `from` if absent. Responses of another are warned of."""


class QScorer(_PrefixScorer):
    """CD-Q: a prefix is worth what the reference expects of its continuation, one token ahead. The responses may come from
    any policy. The head covers the vocabulary. It learns from its own values of the moment, without a target network: with few
    responses keep the learning rate low, and look at whether its loss settles."""

    loss: Literal["cd_q"]
    responses: Responses
    """Sampled responses."""
    reward: TrainingReward
    """The reward of a whole response; an unfinished one is scored as it stands."""
    reference: LanguageModel | None = None
    """The policy that will be controlled, whose next-token distribution the target averages over; `from` if absent."""


class PreferencePrefixScorer(_PrefixScorer):
    """A reward model trained on prefixes (PARGS, Rashid et al., arXiv 2406.07780): Bradley-Terry on the prefixes of equal
    length of the chosen and the rejected answer."""

    loss: Literal["prefix_bt"]
    head: Literal["scalar", "vocabulary"] = "scalar"
    """`scalar` scores the prefix that was read, `vocabulary` at once each token that may follow it."""
    data: PreferencePairs
    """Pairs to learn from."""


PrefixScorer = Annotated[FudgeScorer | QScorer | PreferencePrefixScorer, Field(discriminator="loss")]
