"""What was drawn: answers, and of all that one source drew what it cost and how far it was from a reference."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from tasks.clock import Spent
from tasks.meter import Sums
from tasks.reader import Positions


@dataclass(frozen=True)
class Answer:
    """A policy's answer to a prompt."""

    text: str
    ids: tuple[int, ...]
    """Its tokens, the one that ended it included."""
    finished: bool
    draw: int = 0
    """Its number among the draws to its prompt."""

    @property
    def tokens(self) -> int:
        return len(self.ids)


@dataclass(frozen=True)
class Drawing:
    """One draw of a source: all its answers to all prompts."""

    answers: list[list[Answer]]
    """`[prompt][draw]`"""
    prefill: int
    """Prompt tokens that the policy read."""
    decode: int
    """Positions behind the prompts that it read."""
    drawn: int
    """Tokens that were drawn, those that guides refused included."""
    guides: Positions
    """What its guides read, all together."""
    texts: int
    """Whole texts that rewards scored while it was drawn."""
    spent: Spent
    """Models being loaded, and without what measuring took."""
    memory: int
    """The most bytes in use meanwhile, all models included (also one that only measures): of the device, or of the process
    without one. 0 where that is not known."""
    sums: list[list[Sums]] | None
    """`[prompt][draw]`, where guides change what tokens are drawn from."""
    events: list[dict[str, Any]]
    """What guides looked at before each choice of the first draw to the first prompt: see `tasks.trace`."""
