"""Stages that train: supervised fine-tuning and the Bradley-Terry reward model."""

from typing import Annotated, ClassVar, Literal, Self

from pydantic import Field, model_validator

from specs.base import Count, NonNegative, Positive, Spec, WholeNumber
from specs.references import LanguageModel, PreferencePairs
from specs.stage import Seeded


class Lora(Spec):
    """Low-rank adapters on every linear layer (Hu et al., 2021)."""

    rank: Count = 16
    """The rank of each update."""
    alpha: Count = 32
    """The update is scaled by alpha / rank."""
    dropout: Annotated[float, Field(strict=True, ge=0, lt=1)] = 0.0
    """Dropout on the adapter's input."""
    base: Literal["own", "nf4"] = "own"
    """The frozen weights under the adapters: in the model's own precision, or in four bits (QLoRA: Dettmers et al., 2023),
    a quarter of the memory while it trains. It needs the package bitsandbytes. What was trained so is also used so, on weights
    rounded to four bits, and so is the reference of DPO, RL and QRPO."""


class Training(Seeded):
    """What every gradient-trained stage shares."""

    from_: LanguageModel = Field(alias="from")
    """The model that training starts from."""
    lora: Lora | None = Lora()
    """The adapters to train; `null` trains all weights."""
    learning_rate: Positive = 1e-4
    """The peak learning rate of AdamW; linear decay to zero. Gradients are clipped to norm 1."""
    warmup_steps: WholeNumber = 0
    """Optimizer steps over which the learning rate rises from zero."""
    weight_decay: NonNegative = 0.0
    """AdamW's decoupled weight decay."""
    epochs: Positive = 1.0
    """Passes over the data."""
    batch_size: Count = 8
    """Rows to an optimizer step."""


class TrainingOnTexts(Training):
    """Training on dialogues that are there before it."""

    max_length: Annotated[int, Field(strict=True, ge=8)] = 512
    """The most tokens of a dialogue."""
    too_long: Literal["drop", "truncate_left"] = "drop"
    """What happens to a longer dialogue: it is dropped and counted, or it loses its beginning."""


class TrainingOnline(Training):
    """Training on answers that the policy draws at each step."""

    @model_validator(mode="after")
    def _is_one_policy(self) -> Self:
        if self.lora is not None and self.lora.dropout:
            raise ValueError("samples and learns with one policy, which dropout would make two; set `lora.dropout: 0`")
        return self


class SFT(TrainingOnTexts):
    """Supervised fine-tuning on the chosen answers, loss on the answer's tokens only."""

    produces: ClassVar[str] = "language model"
    version: ClassVar[int] = 2

    do: Literal["sft"]
    data: PreferencePairs
    """Pairs whose `chosen` side is learnt."""


class RewardModel(TrainingOnTexts):
    """A Bradley-Terry reward model: P(chosen preferred) = sigmoid(beta (r_chosen - r_rejected))."""

    produces: ClassVar[str] = "reward"

    do: Literal["reward_model"]
    data: PreferencePairs
    """Pairs to learn from."""
    test: PreferencePairs | None = None
    """Held-out pairs: accuracy is reported on them beside the rule that the longer answer wins.
    They are part of the stage: with others it is trained anew."""
    beta: Positive = 1.0
    """The inverse temperature of the Bradley-Terry model. It sets the unit of the reward: a
    difference of 1/beta is a preference at odds e to 1."""
    center: NonNegative = 0.0
    """The weight of the penalty (r_chosen + r_rejected)^2 that keeps rewards near zero
    (Eisenstein et al., 2023); 0 is off."""
