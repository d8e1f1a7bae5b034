"""Stages that raise a reward with samples of the policy itself: RL (with calibration: CTRL), RRHF, RAFT, BOND."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING, Annotated, ClassVar, Literal

from pydantic import Field

from specs.base import Count, Flag, NonNegative, NotIdentity, Positive, Probability, Spec, form
from specs.calibration import Identity, Transform, calibrations, reference_problems
from specs.problems import Path
from specs.references import REWARDS, PairsOrPrompts, PreferencePairs, Prompts, TrainingReward
from specs.rounds import Rounds
from specs.stage import LAST_RUN, NEVER
from specs.training import TrainingOnline

if TYPE_CHECKING:
    from specs.graph import Graph


class RL(TrainingOnline):
    """KL-regularised reward maximisation, max E[reward] - beta KL(policy || start), with TRL's RLOO or GRPO and rewards
    left unwhitened. With a calibrated and transformed reward it is CTRL (arXiv 2412.19792). `batch_size` counts prompts."""

    produces: ClassVar[str] = "language model"
    version: ClassVar[int] = 2

    do: Literal["rl"]
    prompts: Prompts
    """Prompts to answer."""
    reward: TrainingReward
    """The reward to raise."""
    transform: Transform = Identity(kind="identity")
    """A transformation of a calibrated reward; any other reward takes `identity` only."""
    algorithm: Literal["rloo", "grpo"] = "rloo"
    """Leave-one-out baselines with the KL in the reward (Ahmadian et al., 2024), which has the optimum above, or group
    baselines with the KL in the loss (Shao et al., 2024), where each token answers for its own divergence and not for that
    of the tokens which follow: another optimum for more than one token. Neither is divided by a standard deviation."""
    samples: Annotated[int, Field(strict=True, ge=2)] = 4
    """Samples to each prompt of a step."""
    max_new_tokens: Count = 64
    """The most tokens of a sample."""
    beta: NonNegative = 0.1
    """The weight of the KL divergence from the model that training starts from."""

    def problems(self, graph: Graph) -> Iterator[tuple[Path, str]]:
        """The transforms are functions on [0, 1], where calibrated rewards are uniform."""
        yield from reference_problems(graph, self.reward, self.from_)
        for name, calibration in calibrations(graph, self.reward):
            if calibration.max_new_tokens != self.max_new_tokens:
                yield (
                    ("max_new_tokens",),
                    f"`{name}` ranks among rollouts of at most {calibration.max_new_tokens} tokens, and here samples have "
                    f"at most {self.max_new_tokens}; give both the same `max_new_tokens`",
                )
        if getattr(self.transform, "n", None) is not None and self.beta == 0:
            message = "the optimum for `n` is one for a `beta` above 0; give one, or the transform `t` in place of `n`"
            yield ("beta",), message
        others = {*REWARDS} - {"calibrated reward"}
        for member in graph.members(self.reward):
            if self.transform.kind != "identity" and graph.nodes[member].produces in others:
                what = f"`{self.transform.kind}` is for calibrated rewards, and `{member}` is none"
                yield ("transform",), f"{what}; put a `do: calibrate` stage between"


class SampledCandidates(Spec):
    """Ancestral sampling; with `top_p` below 1, from the nucleus."""

    by: Literal["sample"]
    count: Count = 4
    """Candidates to a prompt."""
    temperature: Positive = 1.0
    """Divides the logits."""
    top_p: Probability = 1.0
    """Keep the smallest set of most probable tokens whose mass reaches this; 1 keeps all."""
    data: Flag = True
    """Whether the data's own answers are candidates too, where the data are pairs."""


class BeamCandidates(Spec):
    """The results of beam search."""

    by: Literal["beam"]
    count: Count = 4
    """Beams, all of which are candidates."""
    data: Flag = True
    """Whether the data's own answers are candidates too, where the data are pairs."""


class DiverseBeamCandidates(Spec):
    """Diverse beam search, one beam a group (Vijayakumar et al., arXiv 1610.02424)."""

    by: Literal["diverse_beam"]
    count: Count = 4
    """Groups, each of which gives a candidate."""
    diversity: NonNegative = 1.0
    """The penalty on a token for each earlier group that has taken it at the same step."""
    temperature: Positive = 0.8
    """Divides the logits."""
    data: Flag = True
    """Whether the data's own answers are candidates too, where the data are pairs."""


class DataCandidates(Spec):
    """The data's own answers alone, which are then pairs."""

    by: Literal["data"]


Candidates = Annotated[
    SampledCandidates | BeamCandidates | DiverseBeamCandidates | DataCandidates, Field(discriminator="by")
]


class RRHF(Rounds):
    """Rank responses to align (Yuan et al., arXiv 2304.05302): the length-normalised log-probabilities of a prompt's candidates
    are brought into the order of their rewards, and the best is learnt. Several rounds draw anew from the model of the
    round before (the paper's IP-n)."""

    produces: ClassVar[str] = "language model"
    version: ClassVar[int] = 3

    do: Literal["rrhf"]
    data: PairsOrPrompts
    """Prompts, or pairs, whose answers may be candidates."""
    reward: TrainingReward
    """The reward that ranks the candidates."""
    candidates: Candidates = SampledCandidates(by="sample")
    """Where the candidates come from."""
    max_new_tokens: Count = 64
    """The most tokens of a candidate that is drawn."""
    test: PreferencePairs | None = None
    """Held-out pairs: how many the model orders right by its length-normalised log-probability, before and after. They are
    part of the stage: with others it is trained anew."""
    rank_weight: NonNegative = 1.0
    """The weight of the ranking loss beside the fine-tuning on the best candidate."""
    sft_term: Literal["sum", "mean", "official_code"] = "sum"
    """The loss on the best candidate: summed over its tokens (the paper), their mean, or divided by the padded length
    of prompt and candidate as the authors' code does."""

    @property
    def drawn(self) -> int:
        """How many candidates of a prompt the stage draws itself."""
        return getattr(self.candidates, "count", 0)

    def problems(self, graph: Graph) -> Iterator[tuple[Path, str]]:
        drawn = self.drawn
        own = getattr(self.candidates, "data", True)
        if not drawn and self.max_new_tokens != RRHF.model_fields["max_new_tokens"].default:
            yield ("max_new_tokens",), "is for candidates that the stage draws itself, and it draws none; leave it out"
        for member in graph.members(self.data):
            prompts = graph.nodes[member].produces == "prompts"
            if prompts and not own:
                yield ("candidates", "data"), f"`{member}` is prompts, which have no answers; leave it out"
            if prompts and not drawn:
                yield ("data",), f"`{member}` is prompts, which have no answers; give preference pairs here"
            if drawn == 1 and (prompts or not own):
                what = f"`{member}` has no answers" if prompts else "the data's answers are no candidates"
                yield ("candidates", "count"), f"{what}, so one candidate has nothing to be ranked against; draw more"


Since = Annotated[
    str, form(rf"^({LAST_RUN}|{NEVER}|[0-9a-f]{{64}})$", f"it is `{LAST_RUN}`, or a fingerprint of 64 digits")
]


class RAFT(Rounds):
    """Reward-ranked fine-tuning (Dong et al., arXiv 2304.06767): sample, keep the best by reward, fine-tune on them; again."""

    produces: ClassVar[str] = "language model"
    version: ClassVar[int] = 3

    do: Literal["raft"]
    prompts: Prompts
    """Prompts to answer."""
    reward: TrainingReward
    """The reward that ranks."""
    samples: Annotated[int, Field(strict=True, ge=1)] = 8
    """Samples to each prompt, K; one in K is kept."""
    rank: Literal["local", "global"] = "local"
    """`local` keeps the best of each prompt's K (the TMLR paper), `global` the best K-th part of all (its first version),
    which compares rewards of different prompts."""
    kl_penalty: NonNegative = 0.0
    """The weight of log(current / initial) that is taken off a sample's reward before ranking."""
    temperature: Positive = 1.0
    """Divides the logits when sampling."""
    max_new_tokens: Count = 64
    """The most tokens of a sample."""
    held_out: Prompts | None = None
    """Prompts on which the mean reward is measured. Once a round does not raise it, the rounds after it train no more and
    give the best model there was."""
    since: Annotated[Since | None, NotIdentity()] = None  # what it comes to is a fact, and that is identity
    """`last_run` goes on from the model that the last completed run of this study made with this stage, so that rounds
    continue night after night; the first run begins from `from`. (A record has in its place what that came to: the fingerprint
    of a model that the stage made, or `never`.)"""

    def problems(self, graph: Graph) -> Iterator[tuple[Path, str]]:
        if self.kl_penalty and self.rounds == 1 and self.since is None:
            yield (
                ("kl_penalty",),
                "is taken off from the second round on, and there is one; raise `rounds`, or leave it out",
            )
        if self.held_out is not None and {*graph.members(self.held_out)} & {*graph.members(self.prompts)}:
            yield ("held_out",), "are the prompts it learns from, which would tell nothing; name others"


class BOND(TrainingOnline):
    """Best-of-N distillation, online (J-BOND, Sessa et al., arXiv 2407.14622): towards the better of two samples of an
    anchor that follows the policy slowly, so best-of-two again and again. `batch_size` counts prompts."""

    produces: ClassVar[str] = "language model"
    version: ClassVar[int] = 2

    do: Literal["bond"]
    prompts: Prompts
    """Prompts to answer."""
    reward: TrainingReward
    """The reward that compares; only its order within a prompt matters."""
    max_new_tokens: Count = 64
    """The most tokens of a sample."""
    mix: Annotated[float, Field(strict=True, ge=0, le=1)] = 0.5
    """The weight of the backward KL beside the forward KL in the Jeffreys divergence."""
    anchor_rate: Annotated[float, Field(strict=True, gt=0, le=1)] = 0.02
    """How far the anchor moves towards the policy at each step: its weights, or each of the two factors of its adapters,
    whose product moves so up to terms of second order."""
    kl_weight: NonNegative = 1.0
    """The weight of KL(policy || anchor)."""
