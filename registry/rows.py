"""Rows in one normal form: pairs and prompts, with every dropped row counted under its reason.

A row is read or it is dropped; nothing is repaired in silence. `check_dropped` turns the counts
into one line for the person once too many rows are lost. `part` splits by a hash of how a dialogue
opens, so a part depends neither on the file's order nor on random numbers, and no prompt is in two.
"""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from decimal import Decimal
from typing import Any, Generic, Literal, TypeVar

from registry.dialogue_text import Message, encode_plain, encode_prompt
from specs.problems import UserError


@dataclass(frozen=True, slots=True)
class Prompt:
    """A dialogue that ends in a user turn."""

    messages: tuple[Message, ...]

    @property
    def id(self) -> str:
        """16 hex digits that depend on the messages alone."""
        turns = [[m["role"], m["content"]] for m in self.messages]
        return _digest(json.dumps(turns, ensure_ascii=False))[:16]


def encode_request(tokenizer: Any, prompt: Prompt, is_plain: bool) -> list[int]:
    """The tokens that a model reads of a prompt; of a plain one its text as it stands, without a template."""
    return (
        encode_plain(tokenizer, prompt.messages[-1]["content"])
        if is_plain
        else encode_prompt(tokenizer, prompt.messages)
    )


@dataclass(frozen=True, slots=True)
class Pair:
    """A dialogue that ends in a user turn, and two answers to it."""

    prompt: tuple[Message, ...]
    chosen: str
    rejected: str
    chosen_finished: bool = True
    """Whether the chosen answer came to its end, or was cut off by a limit on its tokens."""
    rejected_finished: bool = True
    """The same of the rejected one."""


Row = TypeVar("Row", bound=Pair | Prompt)
Column = Literal["prompt", "chosen", "rejected"]


@dataclass(frozen=True, slots=True)
class Rows(Generic[Row]):
    """The rows that can be used, in the file's order, and what became of the others."""

    rows: tuple[Row, ...]
    read: int
    dropped: Mapping[str, int] = field(default_factory=dict)
    """The number of dropped rows by reason."""
    first: Mapping[str, int] = field(default_factory=dict)
    """By reason, the first row dropped for it, from 1; in a `.jsonl` file, its line."""
    columns: tuple[str, ...] = ()
    """The columns that some row has."""
    absent: Mapping[Column, str] = field(default_factory=dict)
    """Columns that are needed and that no row has: our name and the name that was looked for."""


class Unusable(Exception):
    """A row that cannot be used; its text is the reason, a short phrase."""


@dataclass(frozen=True, slots=True)
class Form:
    """How rows of a format are read: columns they must have, others they may have, the rule."""

    needs: tuple[Column, ...]
    may_have: tuple[Column, ...]
    read: Callable[[Mapping[str, Any]], Pair | Prompt]


def collect(raw: Iterable[tuple[int, Any]], form: Form, columns: Mapping[Column, str]) -> Rows[Any]:
    """Numbered raw rows in normal form. A raw row is a mapping, or an `Unusable` where it could not
    even be decoded. `columns` gives the file's name of a column where it is not ours."""
    names = {ours: columns.get(ours, ours) for ours in (*form.needs, *form.may_have)}
    # A column that someone names is meant to be there, even if the form could do without it.
    needs = [ours for ours in names if ours in form.needs or ours in columns]
    rows: list[Pair | Prompt] = []
    read = 0
    dropped: dict[str, int] = {}
    first: dict[str, int] = {}
    seen: dict[str, None] = {}
    for number, values in raw:
        read += 1
        try:
            if isinstance(values, Unusable):
                raise values
            if not isinstance(values, Mapping):
                raise Unusable("not a JSON object")
            seen.update(dict.fromkeys(map(str, values)))
            given: dict[str, Any] = {ours: values.get(theirs) for ours, theirs in names.items()}
            for ours in needs:
                if given[ours] is None:
                    raise Unusable(f"`{ours}` is missing")
            rows.append(form.read(given))
        except Unusable as unusable:
            reason = _in_their_words(str(unusable), names)
            dropped[reason] = dropped.get(reason, 0) + 1
            first.setdefault(reason, number)
    absent = {ours: names[ours] for ours in needs if names[ours] not in seen} if seen else {}
    return Rows(tuple(rows), read, dropped, first, tuple(seen), absent)


def _in_their_words(reason: str, names: Mapping[Column, str]) -> str:
    theirs: dict[str, str] = {str(ours): name for ours, name in names.items()}
    return re.sub(r"`(\w+)(?=[`.])", lambda m: f"`{theirs.get(m[1], m[1])}", reason)


def check_dropped(rows: Rows[Any], max_dropped: str, where: str) -> None:
    """Raises `UserError`, one line that begins with `where`, if too many rows cannot be used."""
    if rows.read == 0:
        raise UserError(f"{where}: there are no rows; the source is empty")
    if rows.absent:
        raise UserError(f"{where}: {_absent(rows)}")
    lost = sum(rows.dropped.values())
    if rows.rows and not too_many(lost, rows.read, max_dropped):
        return
    if not rows.rows:
        raise UserError(f"{where}: none of {rows.read} rows can be used: {reasons(rows)}; mend the file")
    raise UserError(
        f"{where}: {lost} of {rows.read} rows ({percent(lost, rows.read)}) cannot be used, "
        f"more than max_dropped {max_dropped}: {reasons(rows)}; mend the file or raise max_dropped"
    )


def reasons(rows: Rows[Any]) -> str:
    """Why rows were dropped, how many for each reason, and the first of them; the most frequent reason first."""
    return ", ".join(
        f"{reason}: {count} ({'first: ' if count > 1 else ''}row {rows.first[reason]})"
        for reason, count in sorted(rows.dropped.items(), key=lambda item: -item[1])
    )


def _absent(rows: Rows[Any]) -> str:
    lacking = " and ".join(f"`{theirs}`" for theirs in rows.absent.values())
    noun = "column" if len(rows.absent) == 1 else "columns"
    remedy = ", ".join(f"{ours}: <name>" for ours in rows.absent)
    have = ", ".join(f"`{name}`" for name in rows.columns)
    return f"no row has the {noun} {lacking}; the columns are {have}; name the right one with `columns: {{{remedy}}}`"


def too_many(lost: int, of: int, limit: str) -> bool:
    """Whether more than the share `limit` (`1%`) is lost; exactly that much may be."""
    return lost * 100 > Decimal(limit.removesuffix("%")) * of


def percent(some: int, of: int) -> str:
    """A share to three digits, which tell it from the round numbers that limits are."""
    return f"{100 * some / of:.3g} %"


_SALT = "alignflow split 1\n"


def part(rows: Sequence[Row], split: Mapping[str, int], name: str, where: str = "data") -> tuple[Row, ...]:
    """The rows of part `name`, in the order they came in.

    The group of a row is how its dialogue opens. Groups are sorted by a salted sha256; going down
    that order, each goes whole to the first part, by name, that still has room for it.
    """
    assert name in split, "the loader has checked the names of parts"
    groups: dict[str, list[int]] = {}
    for index, row in enumerate(rows):
        messages = row.prompt if isinstance(row, Pair) else row.messages
        groups.setdefault(_digest(_SALT + _opening(messages)), []).append(index)
    room = {p: split[p] for p in sorted(split)}  # the order in the file is no identity
    taken: list[int] = []
    for key in sorted(groups):
        size = len(groups[key])
        goes_to = next((p for p in room if size <= room[p]), None)
        if goes_to is not None:
            room[goes_to] -= size
            if goes_to == name:
                taken += groups[key]
    # Any part that falls short fails them all: the parts are one division of the rows.
    for short, left in room.items():
        if left:
            raise UserError(f"{where}: {_too_few(len(rows), split, short, left)}")
    return tuple(rows[index] for index in sorted(taken))


def _too_few(rows: int, split: Mapping[str, int], short: str, left: int) -> str:
    asked = sum(split.values())
    if rows < asked:
        parts = ", ".join(f"{name}: {count}" for name, count in split.items())
        return f"`split` asks for {asked} rows ({parts}) and {rows} can be used; lower it"
    return (
        f"part `{short}` gets {split[short] - left} of its {split[short]} rows, though {rows} are "
        f"there: rows whose dialogue opens alike stay in one part; lower `split.{short}`"
    )


def _opening(messages: Sequence[Message]) -> str:
    """The first user turn and what stands before it, apart from case and white space. One
    conversation at several lengths shares it, and is not to be trained on here and judged there."""
    end = next(i for i, m in enumerate(messages) if m["role"] == "user")
    return "\n".join(" ".join(m["content"].lower().split()) for m in messages[: end + 1])


def _digest(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()
