"""Where something external comes from: a catalogue name, a local path, or a hub id with a revision.

The form of the text decides, never what happens to exist: with `revision` it is a hub id, one bare
word is a name of the catalogue, anything else is a path.
"""

import re
from typing import Annotated, Literal

from specs.base import EnvironmentText, form

Origin = Literal["catalogue", "path", "hub"]

Source = EnvironmentText
Revision = Annotated[str, form(r"^[0-9a-f]{40}$", "a revision is a commit hash of 40 hexadecimal digits")]

_WORD = re.compile(r"[A-Za-z0-9][A-Za-z0-9_-]*")


def origin(source: str, revision: str | None) -> Origin:
    """Which of the three `source` is."""
    if revision is not None:
        return "hub"
    return "catalogue" if _WORD.fullmatch(source) else "path"
