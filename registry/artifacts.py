"""What a stage is given: the things its references name, found, with their own inputs below them.

A decoding rule carries its language model and its reward, a trained adapter the model it was trained on.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from specs.base import Entry


@dataclass(frozen=True)
class Artifact:
    """Something that can be used: a model, rows, a reward, or what a stage made."""

    name: str
    """Its name in the study; for messages only, never written into an artifact."""
    entry: Entry
    payload: Mapping[str, Any]
    """What its fingerprint is the hash of."""
    fingerprint: str
    part: str | None = None
    """The part of a split data set."""
    folder: Path | None = None
    """Where its files are; None for what has none (a lexicon, a decoding rule not yet recorded)."""
    inputs: Mapping[str, tuple[Artifact, ...]] = field(default_factory=dict)
    """By slot."""

    @property
    def fields(self) -> Mapping[str, Any]:
        """Its identity fields, with references replaced by fingerprints."""
        fields: Mapping[str, Any] = self.payload["spec"]
        return fields

    def one(self, slot: str) -> Artifact:
        (artifact,) = self.inputs[slot]
        return artifact
