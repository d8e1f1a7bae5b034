"""What a slot's artifact holds, as rows: prompts, preference pairs, sampled responses."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from registry import data
from registry.artifacts import Artifact
from registry.rows import Pair, Prompt, Rows
from specs.data import Data

RESPONSES = "responses.jsonl"
PAIRS = "pairs.jsonl"
TRAINING = "training.jsonl"


def prompts_of(artifact: Artifact) -> list[Prompt]:
    rows: tuple[Prompt, ...] = _rows(artifact).rows
    return list(rows)


def pairs_of(artifact: Artifact) -> list[Pair]:
    """The pairs of a data set or of a `label` stage."""
    if isinstance(artifact.entry, Data):
        return list(_rows(artifact).rows)
    assert artifact.folder is not None
    return [Pair(tuple(row["prompt"]), row["chosen"], row["rejected"]) for row in read_lines(artifact.folder / PAIRS)]


def _rows(artifact: Artifact) -> Rows:
    entry = artifact.entry
    assert isinstance(entry, Data)
    return data.read(entry, artifact.part, f"data.{artifact.name}")


def read_lines(path: Path) -> Iterator[Any]:
    """The rows of a JSON Lines file of ours."""
    with path.open(encoding="utf-8") as file:
        yield from map(json.loads, file)


def write_lines(path: Path, rows: list[dict[str, Any]]) -> None:
    with path.open("w", encoding="utf-8") as file:
        file.writelines(json.dumps(row, ensure_ascii=False, allow_nan=False) + "\n" for row in rows)
