"""Decoding rules.

A `decode` stage is a policy: it defines a rule and generates nothing until something samples from it, so
every method is compared through one door. A language model named as a policy is sampled at temperature 1.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING, Annotated, ClassVar, Literal

from pydantic import Field, model_validator

from specs.base import Count, Flag, NonNegative, Number, Positive, Probability, WholeNumber
from specs.problems import Path
from specs.references import AutoregressiveReward, GuidanceReward, LanguageModel, PrefixReward, Scorer
from specs.stage import Stage

if TYPE_CHECKING:
    from specs.graph import Graph

Several = Annotated[int, Field(strict=True, ge=2)]


class _Decode(Stage):
    produces: ClassVar[str] = "decoding rule"

    do: Literal["decode"]
    from_: LanguageModel = Field(alias="from")
    """The language model that the rule decodes."""

    @property
    def is_random(self) -> bool:
        return getattr(self, "temperature", 0.0) > 0  # greedy decoding has none


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

    method: Literal["greedy"]


class DecodeBestOfN(_Sampled):
    """The response of highest reward among n samples (the first on a tie). With the same seed the
    samples of a smaller n are among those of a larger one."""

    method: Literal["best_of_n"]
    reward: GuidanceReward
    """The reward that chooses."""
    n: Several
    """How many samples it chooses from."""


class DecodeWorstOfN(_Sampled):
    """The response of lowest reward among n samples (the first on a tie): what an attacker gets who may try n times."""

    method: Literal["worst_of_n"]
    reward: GuidanceReward
    """The reward that chooses."""
    n: Several
    """How many samples it chooses from."""


class _Guided(_Decode):
    temperature: NonNegative = 1.0
    """Divides the guided scores; 0 takes the token of highest score."""
    top_k: WholeNumber = 0
    """Of the guided distribution, keep only the k most probable tokens; 0 keeps all."""
    top_p: Probability = 1.0
    """Of the guided distribution, keep the smallest set of most probable tokens whose mass reaches this; 1 keeps all."""


class DecodeARGS(_Decode):
    """ARGS (Khanov et al., arXiv 2402.01694): at each step the model's k most probable tokens are scored by logit +
    strength * reward of the text up to and with the token. A token that ends the answer is among them, and its reward is
    that of the finished answer. A reward model reads the others as texts of the kind it was trained on, which were all
    finished: it extrapolates. A prefix scorer (PARGS, with `loss: prefix_bt`) was trained on unfinished ones."""

    method: Literal["args"]
    reward: PrefixReward
    """A reward model or prefix scorer that reads the same tokens."""
    candidates: Count = 10
    """How many of the most probable tokens are scored."""
    strength: Number = 1.5
    """What multiplies the reward; its unit is one over the reward's."""
    temperature: NonNegative = 0.0
    """0 takes the token of highest score (ARGS-greedy); above it the score divided by it is sampled from (ARGS-stochastic)."""
    standardise: Flag = False
    """Bring the candidates' rewards of each step to mean 0 and standard deviation 1, so that `strength` has no unit."""

    def problems(self, graph: Graph) -> Iterator[tuple[Path, str]]:
        return _text_rewards(graph, self.reward, "ARGS scores every candidate token")


class DecodeControlled(_Guided):
    """Controlled decoding (Mudgal et al., arXiv 2310.17022). Token by token, the next token's probability is multiplied by
    exp(strength * value of going on with it). With `block`, so many tokens are continued in several ways, of which the one
    of highest value is kept: between the model (one way) and best-of-n (a block as long as an answer)."""

    method: Literal["controlled_decoding"]
    scorers: Annotated[dict[Scorer, Number], Field(min_length=1)]
    """Prefix scorers and their weights. Token by token they need a `vocabulary` head; blocks may be scored by rewards too,
    which read what there is as a finished answer."""
    strength: Number = 1.0
    """Token by token, multiplies all weights."""
    block: Count | None = None
    """The tokens of a block; token by token if absent."""
    samples: Several | None = None
    """How many ways each block is continued in."""

    @model_validator(mode="after")
    def _has_one_form(self) -> DecodeControlled:
        if (self.block is None) != (self.samples is None):
            raise ValueError("takes `block` and `samples` together: the tokens of a block, and the ways to continue it")
        if self.block is not None and self.strength != 1:
            raise ValueError("the best block is the best at any `strength`; leave it out")
        if self.block is not None and self.temperature == 0:
            raise ValueError("at temperature 0 all ways to continue a block are one; raise it")
        return self

    def problems(self, graph: Graph) -> Iterator[tuple[Path, str]]:
        for name in self.scorers if self.block is None else ():
            for member in graph.members(name):
                if graph.nodes[member].produces != "prefix scorer":
                    message = "scores whole texts; name a prefix scorer, or decode by `block` and `samples`"
                    yield ("scorers", name), f"`{member}` {message}"
                elif getattr(graph.nodes[member].entry, "head", "vocabulary") == "scalar":
                    message = "has a scalar head, which scores one token at a time; train it with `head: vocabulary`"
                    yield ("scorers", name), f"`{member}` {message}"


class DecodeGenARM(_Guided):
    """GenARM (Xu et al., arXiv 2410.08193): pi(z) in proportion to pi_base(z) times each guide's pi_r(z) to the power of
    strength times its weight (the paper's 1 / beta). A guide may be smaller than the model (weak to strong)."""

    method: Literal["genarm"]
    guides: Annotated[dict[AutoregressiveReward, Number], Field(min_length=1)]
    """Autoregressive reward models and their weights."""
    strength: Number = 1.0
    """Multiplies all weights."""
    official_code: Flag = False
    """Divide the sum of log-probabilities by one plus the guides' weights, as the published code does; it then samples at a
    temperature of one over that, which restores the paper's product."""

    @model_validator(mode="after")
    def _can_be_divided(self) -> DecodeGenARM:
        total = 1 + self.strength * sum(self.guides.values())
        if self.official_code and total <= 0:
            raise ValueError(
                f"`official_code` divides by one plus the guides' weights, which is {total:g}; it has to be positive"
            )
        return self


class DecodeMOD(_Guided):
    """Multi-objective decoding (Shi et al., arXiv 2406.18853): the product of several policies, each to the power of its
    weight, and of `from` to the power of one minus their sum: nothing of it where they sum to one."""

    method: Literal["mod"]
    policies: Annotated[dict[LanguageModel, Number], Field(min_length=1)]
    """Language models and their weights."""

    def problems(self, graph: Graph) -> Iterator[tuple[Path, str]]:
        if self.from_ in self.policies:
            yield (
                ("policies", self.from_),
                f"`{self.from_}` is `from`, whose power is one minus the weights of the others",
            )


class DecodeCARDS(_Sampled):
    """CARDS (Li et al., arXiv 2406.16306): segments are sampled, each up to where the model is uncertain of the next token,
    and accepted with probability min(1, exp((reward - threshold) / beta)). The threshold rises with the answer's length to
    the target. Segments are unfinished texts, which a reward model was not trained on; a prefix scorer was."""

    method: Literal["cards"]
    reward: PrefixReward
    """A reward model or prefix scorer that reads the same tokens."""
    target: Number
    """The reward from which on everything is accepted, in the reward's own unit: to begin with, what the better half of the
    model's own answers get (the table of a `label` or `evaluate` stage tells). The threshold rises over the most tokens that
    an answer may have, so the same seed gives other answers under another limit."""
    alpha: Annotated[float, Field(strict=True, ge=0, le=1)] = 0.5
    """Where between the prompt's own reward (0) and the target (1) the threshold begins."""
    beta: Positive = 0.7
    """How far below the threshold a reward may be: at beta below it one segment in e is accepted."""
    entropy: NonNegative = 3.0
    """A segment ends where the next token's entropy is at least this, in nats."""
    shortest: Count = 4
    """The fewest tokens of a segment, unless the answer ends."""
    longest: Count = 64
    """The most tokens of a segment."""
    tries: Count = 20
    """So many segments are drawn at most; then the best of them is accepted."""

    @model_validator(mode="after")
    def _has_room(self) -> DecodeCARDS:
        if self.shortest > self.longest:
            raise ValueError(
                f"`shortest` is {self.shortest} and `longest` {self.longest}; the first is to be the smaller"
            )
        return self

    def problems(self, graph: Graph) -> Iterator[tuple[Path, str]]:
        yield from _text_rewards(graph, self.reward, "CARDS scores an answer as it grows")
        for member in graph.members(self.reward):
            scorer = graph.nodes[member]
            if scorer.produces == "prefix scorer" and getattr(scorer.entry, "head", "vocabulary") == "vocabulary":
                told = "values each next token, and CARDS asks for what was read; train it with `head: scalar`"
                yield ("reward",), f"`{member}` {told}"


def _text_rewards(graph: Graph, reward: str, why: str) -> Iterator[tuple[Path, str]]:
    """Rewards of whole texts where one of tokens is asked for."""
    for member in graph.members(reward):
        node = graph.nodes[member]
        if node.section == "rewards" and node.entry.kind_name != "classifier":
            message = f"scores whole texts, and {why}; name a reward model or prefix scorer"
            yield ("reward",), f"`{member}` {message}"


class DecodeTransferQ(_Decode):
    """Transfer-Q* (Chakraborty et al., arXiv 2405.20495): as ARGS, but a candidate's reward is that of the answer which an
    aligned model, going on greedily from it, comes to within `look_ahead` tokens. It is read as a finished one."""

    method: Literal["transfer_q"]
    baseline: LanguageModel
    """The aligned model that goes on from each candidate."""
    reward: GuidanceReward
    """The reward of what it comes to. A reward model with the same tokens reads on from what it has read; any other
    reward is asked for whole texts, k at each token."""
    candidates: Count = 10
    """How many of the most probable tokens are tried."""
    look_ahead: Count = 20
    """How many tokens the baseline adds to each."""
    strength: Number = 1.0
    """What multiplies the reward; its unit is one over the reward's."""
    temperature: NonNegative = 0.0
    """0 takes the token of highest score; above it the score divided by it is sampled from."""


Decode = Annotated[
    DecodeSample
    | DecodeGreedy
    | DecodeBestOfN
    | DecodeWorstOfN
    | DecodeARGS
    | DecodeControlled
    | DecodeGenARM
    | DecodeMOD
    | DecodeTransferQ
    | DecodeCARDS,
    Field(discriminator="method"),
]
