"""What a stage is given: the things its references name, found, with their own inputs below them.

A decoding rule carries its language model and its reward, a trained adapter the model it was trained on.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from specs.base import Entry

ADAPTER = "adapter"
"""The folder of an artifact that holds what training added to the model below it."""
WEIGHTS = "model"
"""The folder of an artifact that holds all weights."""


@dataclass(frozen=True)
class Artifact:
    """Something that can be used: a model, rows, a reward, or what a stage made."""

    name: str
    """Its name in the study; for messages only, never written into an artifact."""
    entry: Entry
    payload: Mapping[str, Any]
    """What its fingerprint is the hash of."""
    fingerprint: str
    produces: str = ""
    """Its artifact type."""
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

    @property
    def start(self) -> Artifact:
        """The model below a trained one: what its training went on from; below a soup, what its experts share."""
        if "experts" in self.inputs:
            return _shared(self.inputs["experts"])
        return (self.inputs.get("previous") or self.inputs.get("since") or self.inputs["from"])[0]

    def one(self, slot: str) -> Artifact:
        (artifact,) = self.inputs[slot]
        return artifact


def bottom(artifact: Artifact) -> Artifact:
    """What lies below an artifact's adapters: an external model, or one whose weights were trained whole."""
    while _is_made(artifact) and not (artifact.folder is not None and (artifact.folder / WEIGHTS).is_dir()):
        artifact = artifact.start
    return artifact


def soup_weights(soup: Artifact) -> list[float]:
    """The weights of a soup's experts, equal ones where it names none."""
    experts = soup.inputs["experts"]
    return list(soup.fields["weights"] or [1 / len(experts)] * len(experts))


def _shared(experts: tuple[Artifact, ...]) -> Artifact:
    """The nearest model that all experts come from; the first expert where they have none in common."""
    below = [{a.fingerprint for a in _lineage(expert)} for expert in experts]
    shared = (a for a in _lineage(experts[0]) if all(a.fingerprint in line for line in below))
    return next(shared, experts[0])


def _lineage(artifact: Artifact) -> Iterator[Artifact]:
    yield artifact
    while _is_made(artifact):
        artifact = artifact.start
        yield artifact


def _is_made(artifact: Artifact) -> bool:
    return bool(artifact.inputs.keys() & {"from", "previous", "experts"})
