"""The text of an answer while its tokens come, whose characters may be several of them."""

from __future__ import annotations

from collections.abc import Sequence

import pytest

from tasks.growing_text import GrowingText


def bytes_of(ids: Sequence[int]) -> str:
    return bytes(ids).decode(errors="replace")


def grown(text: str, stop: Sequence[str]) -> tuple[list[str], str | None]:
    """What is given byte by byte, and why it ended."""
    ids, growing = text.encode(), GrowingText(bytes_of, stop)
    pieces = [
        growing.grow(list(ids[:many]), is_over=many == len(ids), finished=True)
        for many in range(1, len(ids) + 1)
        if growing.reason is None
    ]
    assert growing.whole == "".join(pieces)
    return [piece for piece in pieces if piece], growing.reason


def test_a_character_is_given_when_all_of_its_bytes_are_there() -> None:
    assert grown("a\N{SNOWMAN}b", ()) == (["a", "\N{SNOWMAN}", "b"], "stop")


def test_what_may_be_the_beginning_of_a_stop_is_held_back_until_it_is_not() -> None:
    assert grown("xaby", ("abc",)) == (["x", "aby"], "stop")


@pytest.mark.parametrize("stop", ["ab\N{LATIN SMALL LETTER E WITH ACUTE}", "a\N{SNOWMAN}\N{SNOWMAN}", "\N{SNOWMAN}b"])
def test_nothing_is_given_of_a_stop_whose_characters_are_several_tokens(stop: str) -> None:
    assert grown(f"x{stop}y", (stop,)) == (["x"], "stop")
