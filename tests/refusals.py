"""What `load` has against a study, as the person reads it."""

from __future__ import annotations

from pathlib import Path

from specs.load import load
from specs.problems import SpecError


def refusals(folder: Path, text: str) -> list[str]:
    """Each problem of the study with this text, without the place in its file; none where it is fine."""
    path = folder / "s.yaml"
    path.write_text(text)
    try:
        load(path)
    except SpecError as told:
        return [str(p).split("  ", 1)[1] for p in told.problems]
    return []
