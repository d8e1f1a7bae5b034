"""What is asked of a policy that is being served, and what it answers, piece by piece."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

from registry.rows import Prompt


@dataclass(frozen=True)
class Asked:
    """One request."""

    policy: str
    prompt: Prompt
    is_plain: bool
    """Whether the prompt is one text to go on from as it stands: language models read it without their templates. Rewards of
    whole texts read it as what a person said."""
    samples: int
    max_new_tokens: int | None
    """None for as many as there is room for."""
    seed: int
    repetition: int = 0
    """How often the same prompt came before it in what was asked at once: each time has random numbers of its own."""
    temperature: float | None = None
    """In place of the rule's own."""
    top_p: float | None = None
    """In place of the rule's own."""
    stop: tuple[str, ...] = ()
    """Texts before which an answer ends."""
    is_streamed: bool = False
    """Whether somebody hears of the text while it grows."""


@dataclass(frozen=True)
class Piece:
    """More of an answer's text."""

    choice: int
    text: str


@dataclass(frozen=True)
class End:
    """An answer has come to its end."""

    choice: int
    reason: Literal["stop", "length"]


@dataclass(frozen=True)
class Done:
    """All answers have."""

    prompt_tokens: int
    drawn_tokens: int
    """Of all draws, those that were not chosen too."""


@dataclass(frozen=True)
class Failed:
    """There will be no more."""

    message: str
    fault: Literal["request", "policy", "busy", "closing"]
    """Whose it is: the request's, that of the policy or of us, that of all who ask at once, or nobody's: the server ends."""


Event = Piece | End | Done | Failed
Tell = Callable[[Event], None]
