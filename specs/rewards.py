"""Rewards that need no training. Trained ones are stages (`reward_model`)."""

from typing import Annotated, ClassVar, Literal

from pydantic import Field

from specs.base import Entry, NotIdentity, Number, form
from specs.models import Precision
from specs.references import AnyReward
from specs.sources import Revision, Source


class _Reward(Entry):
    produces: ClassVar[str] = "reward"

    kind: str
    use: Annotated[Literal["any", "evaluation"], NotIdentity()] = "any"
    """`evaluation` keeps this reward out of training and guidance: naming it there is an error."""

    @property
    def kind_name(self) -> str:
        return self.kind


class Lexicon(_Reward):
    """Sentiment of the response by the VADER lexicon (Hutto and Gilbert, 2014): the compound score in [-1, 1]."""

    kind: Literal["lexicon"]


class Length(_Reward):
    """The number of words in the response (divided by white space)."""

    kind: Literal["length"]
    per_word: Number = 1.0
    """The reward of one word; a negative number rewards brevity."""


class Classifier(_Reward):
    """A sequence classifier's score of the dialogue, re-tokenised with the classifier's own tokenizer and template."""

    kind: Literal["classifier"]
    source: Source
    """A folder of safetensors, or a hub id (with `revision`)."""
    revision: Revision | None = None
    """The commit hash of a hub model."""
    label: Annotated[str, Field(min_length=1)] | None = None
    """The class whose log-probability is the reward, by its name in the model's configuration. A
    model with a single output gives that output as it is."""
    precision: Precision = "auto"
    """The type of the weights in memory; the score itself is always computed in fp32."""
    max_length: Annotated[int, Field(strict=True, ge=8)] = 1024
    """The most tokens of one dialogue; longer ones lose their beginning."""


class Coherence(_Reward):
    """How near an answer is to what was asked: the cosine of their embeddings by a sentence encoder (ARGS, arXiv 2402.01694)."""

    kind: Literal["coherence"]
    source: Source
    """A folder of safetensors, or a hub id (with `revision`): an encoder such as sup-simcse-bert-base-uncased."""
    revision: Revision | None = None
    """The commit hash of a hub model."""
    max_length: Annotated[int, Field(strict=True, ge=8)] = 512
    """The most tokens of one text; longer ones lose their end."""


class PythonReward(_Reward):
    """A function of your own: `score(prompts, responses)` returns one finite number a response, which depends on
    that prompt and response alone: what else is in the lists is nobody's promise."""

    kind: Literal["python"]
    target: Annotated[str, form(r"^[A-Za-z_][\w.]*:[A-Za-z_]\w*$", "a function is written `module:function`")]
    """`module:function`; the module lies in the spec's folder or is installed."""


class Weighted(_Reward):
    """A weighted sum of other rewards."""

    made_of: ClassVar[tuple[str, ...]] = ("of",)

    kind: Literal["weighted"]
    of: Annotated[dict[AnyReward, Number], Field(min_length=1)]
    """Each reward's weight."""


Reward = Annotated[Lexicon | Length | Classifier | Coherence | PythonReward | Weighted, Field(discriminator="kind")]
