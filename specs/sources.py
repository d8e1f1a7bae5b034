"""Where something external comes from: a catalogue name, a local path, a hub id with a revision, or MLflow's model registry.

The form of the text decides, never what happens to exist: with `revision` it is a hub id, one bare
word is a name of the catalogue, what begins with `models:/` is a promoted model, anything else is a path.
"""

import re
from dataclasses import dataclass
from typing import Annotated, Literal

from specs.base import EnvironmentText, form

Origin = Literal["catalogue", "path", "hub", "registry"]

Source = EnvironmentText
Revision = Annotated[str, form(r"^[0-9a-f]{40}$", "a revision is a commit hash of 40 hexadecimal digits")]

REGISTRY = "models:/"
_WORD = re.compile(r"[A-Za-z0-9][A-Za-z0-9_-]*")
_PROMOTED = re.compile(r"models:/([A-Za-z0-9][A-Za-z0-9 ._-]*)(?:@([A-Za-z0-9_-]+)|/([1-9][0-9]*))")


def origin(source: str, revision: str | None) -> Origin:
    """Which of the four `source` is."""
    if revision is not None:
        return "hub"
    if source.startswith(REGISTRY):
        return "registry"
    return "catalogue" if _WORD.fullmatch(source) else "path"


@dataclass(frozen=True, slots=True)
class Promoted:
    """A version of a registered model, by an alias or by its number."""

    name: str
    alias: str | None
    version: str | None

    def __str__(self) -> str:
        return f"{REGISTRY}{self.name}@{self.alias}" if self.alias else f"{REGISTRY}{self.name}/{self.version}"


def promoted(source: str) -> Promoted:
    """What a `models:/` source names. Raises `ValueError` where it is not written as one."""
    found = _PROMOTED.fullmatch(source)
    if found is None:
        raise ValueError(f"a promoted model is written `models:/NAME@ALIAS` or `models:/NAME/3`, not `{source}`")
    return Promoted(*found.groups())
