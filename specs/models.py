"""External language models: packaged, local, on a hub at a pinned revision, or promoted by an earlier study."""

from typing import ClassVar, Literal, Self

from pydantic import field_validator, model_validator

from specs.base import Entry
from specs.sources import Revision, Source, origin, promoted

Precision = Literal["auto", "bf16", "fp32"]


class Model(Entry):
    """A causal language model with its tokenizer."""

    produces: ClassVar[str] = "language model"

    source: Source
    """A name of the model catalogue, a folder of safetensors, a hub id (with `revision`), or what `alignflow promote` put into
    MLflow's model registry: `models:/NAME@ALIAS`, whatever version the alias means when the study is planned, or `models:/NAME/3`."""
    revision: Revision | None = None
    """The commit hash of a hub model; a branch name would change its meaning over time."""
    via: Literal["package", "hub"] = "package"
    """For a catalogue name, where its weights come from: the package that carries them, or the hub."""
    precision: Precision = "auto"
    """The type of the weights in memory. `auto` is bf16 where the processor has it, else fp32, and
    is resolved before fingerprints are taken."""
    template: Literal["tokenizer", "hh", "text"] = "tokenizer"
    """How a dialogue becomes text: the tokenizer's own chat template, the `Human:`/`Assistant:`
    form of HH-RLHF, or the bare text (one turn only), for models that were never tuned on a chat form."""
    pad_token: str | None = None
    """The padding token, for a tokenizer that names none. It must be one of its tokens."""

    @field_validator("source")
    @classmethod
    def _is_written_in_full(cls, source: str) -> str:
        if origin(source, None) == "registry":
            promoted(source)
        return source

    @model_validator(mode="after")
    def _is_as_it_was_promoted(self) -> Self:
        extra = sorted(self.model_fields_set - {"source"})
        if extra and origin(self.source, self.revision) == "registry":
            raise ValueError(f"a promoted model is used as it was made; leave out {', '.join(f'`{e}`' for e in extra)}")
        return self

    @property
    def kind_name(self) -> str:
        return "model"
