"""Rows as a stage will read them, in tokens: counted where they are there, reckoned where an earlier stage is to make them."""

from __future__ import annotations

import json
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from registry.artifacts import Artifact
from registry.lengths import lengths
from registry.store import RECORD
from specs.data import Data
from specs.generation import Label, Sample
from tasks.standing import root


class Unknown(Exception):
    """Why nothing can be said before the stage runs."""


@dataclass(frozen=True)
class Texts:
    """See the module. Of many rows some stand for all."""

    prompts: tuple[float, ...]
    """Tokens of each."""
    answers: tuple[tuple[float, ...], ...]
    """Tokens of each answer of a row."""
    rows: float
    """How many rows there are."""
    prompt_bytes: float
    """Of a prompt's text."""
    letters: float
    """Bytes of text to a token."""
    sampled: int = 0
    """How many of a row's answers are reckoned."""
    limit: float = 0.0
    """The most tokens that one of those may have."""
    lost: str = ""
    """What of the data set cannot be used, and why."""

    @property
    def prompt(self) -> float:
        return _mean(self.prompts)

    @property
    def longest_prompt(self) -> float:
        return max(self.prompts, default=0.0)

    @property
    def longest_answer(self) -> float:
        return max(self.limit, max(map(max, self.answers), default=0.0)) if self.each else 0.0

    @property
    def tokens(self) -> float:
        """Of all answers of a row."""
        return _mean([sum(row) for row in self.answers])

    @property
    def each(self) -> float:
        """Answers to a row."""
        return _mean([float(len(row)) for row in self.answers])

    def asked(self, count: int, tokens: float, limit: float, *, beside: bool = False) -> Texts:
        """With `count` answers of `tokens` tokens that are to be sampled, in the place of those that are there or `beside`
        them."""
        there = self.answers if beside and self.answers else ((),) * len(self.prompts)
        return replace(self, answers=tuple((*row, *(tokens,) * count) for row in there), sampled=count, limit=limit)

    def first(self, count: int) -> Texts:
        """With so many of each row's answers."""
        return replace(self, answers=tuple(row[:count] for row in self.answers), sampled=min(count, self.sampled))

    def side_by_side(self) -> tuple[list[float], float]:
        """The lengths of rows that hold a prompt once with all its answers, and of the longest that there may be."""
        widths = [p + sum(row) for p, row in zip(self.prompts, self.answers, strict=True)]
        return widths, max(widths, default=0.0) + self._more

    @property
    def most_answered(self) -> float:
        """The most tokens that all answers of a row may have."""
        return max(map(sum, self.answers), default=0.0) + self._more

    @property
    def _more(self) -> float:
        """What answers that are reckoned may be longer by, all of a row."""
        return max((self.sampled * (self.limit - row[-1]) for row in self.answers if self.sampled), default=0.0)

    def apart(self) -> tuple[list[float], float]:
        """The lengths of each row's longest sequence, prompt and answer, and of the longest that there may be."""
        widths = [p + max(row, default=0.0) for p, row in zip(self.prompts, self.answers, strict=True)]
        return widths, max([*widths, *([self.longest_prompt + self.limit] if self.sampled else [])], default=0.0)

    def fitting(self, entry: Any) -> Texts:
        """What a stage that trains keeps of them: rows with a dialogue of more than `max_length` tokens are dropped, or lose
        their beginning."""
        most = float(entry.max_length)
        both = list(zip(self.prompts, self.answers, strict=True))
        if entry.too_long == "drop":
            kept = [(p, row) for p, row in both if p + max(row, default=0.0) <= most]
        else:
            kept = [(max(0.0, min(p, most - max(row, default=0.0))), row) for p, row in both]
        prompts, answers = (tuple(side) for side in zip(*kept, strict=True)) if kept else ((), ())
        rows = self.rows * len(kept) / max(len(both), 1)
        return replace(self, prompts=prompts, answers=answers, rows=rows)


def texts(artifact: Artifact, model: Artifact, home: Path, share: float) -> Texts:
    """What a slot's artifact gives, in the tokens of a model; a sampled answer has `share` of the tokens that it may have.
    Raises `Unknown`, and `UserError` for rows that cannot be used."""
    entry = artifact.entry
    if isinstance(entry, Data):
        found = lengths(artifact, root(model), home)
        if found is None:
            raise Unknown(f"the rows of `{artifact.name}` are on a hub, and are counted when they are read")
        answers = tuple(tuple(map(float, row)) for row in found.answers) or ((),) * len(found.prompts)
        lost = f"data.{artifact.name}: {found.dropped}" if found.dropped else ""
        return Texts(
            tuple(map(float, found.prompts)), answers, float(found.rows), found.prompt_bytes, found.letters, lost=lost
        )
    if isinstance(entry, Sample):
        asked = texts(artifact.one("prompts"), model, home, share)
        tokens = measured(artifact).get("tokens_per_response", max(1.0, share * entry.max_new_tokens))
        return asked.asked(entry.samples, tokens, entry.max_new_tokens)
    if isinstance(entry, Label):
        asked = texts(artifact.one("responses"), model, home, share)
        pairs = asked.rows * min(entry.pairs_per_prompt, int(asked.each) // 2)
        return replace(asked.first(2), rows=measured(artifact).get("pairs", pairs))
    raise Unknown(f"what `{artifact.name}` gives is not known before it is there")


def measured(artifact: Artifact) -> dict[str, float]:
    """The metrics of a stage that is stored; nothing of one that is not."""
    try:
        assert artifact.folder is not None
        found: dict[str, float] = json.loads((artifact.folder / RECORD).read_bytes())["metrics"]
        return found
    except (OSError, ValueError, KeyError):
        return {}


def _mean(values: Any) -> float:
    return sum(values) / len(values) if values else 0.0
