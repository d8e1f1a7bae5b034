"""The text of an answer while its tokens come: what is sure of it, and where it ends.

What may still change is held back: a character of which bytes are missing, spaces that an end would strip, the beginning of a
text before which the answer would end. What was given is never taken back.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Literal

MISSING = "\N{REPLACEMENT CHARACTER}"


class GrowingText:
    """See the module."""

    def __init__(self, decode: Callable[[Sequence[int]], str], stop: Sequence[str], *, is_heard: bool = True) -> None:
        """`decode` writes tokens out. Where nobody hears of the text before its end, and nothing stops it, it is written once."""
        self.decode, self.stop = decode, stop
        self.waits = not (is_heard or stop)
        self.tokens = 0
        self.whole = ""
        """All that has been given."""
        self.reason: Literal["stop", "length"] | None = None
        """Why it ended, once it has."""

    def grow(self, ids: Sequence[int], *, is_over: bool, finished: bool) -> str:
        """What is new of the text, whose tokens are `ids` so far."""
        if self.reason is not None or (len(ids) == self.tokens and not is_over):
            return ""
        self.tokens = len(ids)
        if self.waits and not is_over:
            return ""
        text = self.decode(ids)
        cuts = [place for stop in self.stop if (place := text.find(stop)) >= 0]
        if cuts:
            text, self.reason = text[: min(cuts)], "stop"
        elif is_over:
            self.reason = "stop" if finished else "length"
        else:
            text = text[: len(text) - _missing(text)]
            text = text[: len(text) - max((_begun(text, stop) for stop in self.stop), default=0)]
        if not text.startswith(self.whole):  # a decoder that rewrites what stands before: no more can be given
            return ""
        more = text[len(self.whole) :]
        self.whole = text
        return more


def _missing(text: str) -> int:
    return len(text) - len(text.rstrip(MISSING))


def _begun(text: str, stop: str) -> int:
    """How much of `stop` the end of the text may be the beginning of."""
    return next((size for size in range(min(len(stop) - 1, len(text)), 0, -1) if text.endswith(stop[:size])), 0)
