"""How many positions the models of a reward read for each text that they score: a part of what choosing by it costs."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from contextvars import ContextVar

_notes: ContextVar[list[Sequence[int]] | None] = ContextVar("notes", default=None)


class Noted(list[Sequence[int]]):
    """Of each model that read the texts, the positions of each."""

    def of_each(self, texts: int) -> list[int]:
        """By text, in the order in which they were given."""
        return [sum(lengths) for lengths in zip(*self, strict=True)] if self else [0] * texts


@contextmanager
def noting() -> Iterator[Noted]:
    """What models read within."""
    noted = Noted()
    token = _notes.set(noted)
    try:
        yield noted
    finally:
        _notes.reset(token)


def note(lengths: Sequence[int]) -> None:
    """A model reads texts of these lengths, the prompt before each counted with it."""
    noted = _notes.get()
    if noted is not None:
        noted.append(lengths)
