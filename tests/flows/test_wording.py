"""Numbers as a person reads them."""

from __future__ import annotations

import pytest

from flows.wording import count, divergence, duration, number, p_value, spread


def test_what_is_rounded_to_nothing_has_no_sign() -> None:
    assert (number(-0.0004), number(-0.0006), number(2.0)) == ("0.000", "-0.001", "2.000")
    assert spread({"x": 1.0, "x_low": -1e-9, "x_high": 2.25}, "x", 1) == "1.0 [0.0, 2.2]"


def test_a_divergence_says_how_it_is_known() -> None:
    interval = {"estimate": 0.6364, "low": 0.5, "high": 0.7}
    told = {how: divergence((how, interval)) for how in ("rao_blackwell", "best_of_n", "point_mass", "bound")}
    assert told == {
        "rao_blackwell": "0.636", "best_of_n": "0.636", "point_mass": "0.636 (one answer)", "bound": "<= 0.636",
    }  # fmt: skip
    assert divergence(None) == "-"


@pytest.mark.parametrize(
    ("seconds", "text"), [(0.0314, "0.031 s"), (12.34, "12.3 s"), (99.94, "99.9 s"), (270, "4.5 min"), (7560, "2.1 h")]
)
def test_a_duration_has_the_unit_that_suits_it(seconds: float, text: str) -> None:
    assert duration(seconds) == text


def test_counts_and_chances() -> None:
    assert [count(v) for v in (4.0, 56.72, 1234.4)] == ["4", "56.7", "1,234"]
    assert (p_value(0.0125), p_value(0.0004)) == ("p = 0.013", "p < 0.001")
