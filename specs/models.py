"""External language models: packaged, local, or on a hub at a pinned revision."""

from typing import ClassVar, Literal

from specs.base import Entry
from specs.sources import Revision, Source

Precision = Literal["auto", "bf16", "fp32"]


class Model(Entry):
    """A causal language model with its tokenizer."""

    produces: ClassVar[str] = "language model"

    source: Source
    """A name of the model catalogue, a folder of safetensors, or a hub id (with `revision`)."""
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

    @property
    def kind_name(self) -> str:
        return "model"
