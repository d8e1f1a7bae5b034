"""Diversity by the paper and by its code, degeneration, refusals, copies: counted by hand, limits, invariances."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from registry.methods import repetition
from registry.methods.repetition import TrainingTexts, diversity, is_degenerate, is_refusal, rep_n, words

LETTERS = st.lists(st.sampled_from("abc"), max_size=30)
BOTH = pytest.mark.parametrize("convention", ["paper", "official_code"])


def numbered(count: int, start: int = 0) -> list[str]:
    return [f"w{i}" for i in range(start, start + count)]


def test_words_are_those_of_nltk_with_marks_apart() -> None:
    assert words("I don't know, do you?") == ["I", "do", "n't", "know", ",", "do", "you", "?"]
    assert words("It rained. It stopped.") == ["It", "rained.", "It", "stopped", "."]
    assert words(" \n") == []


def test_rep_2_of_a_b_a_b_a_is_one_half_and_by_the_code_three_fifths() -> None:
    # ab, ba, ab, ba: two of four are new, and the code divides by five.
    assert rep_n(["a", "b", "a", "b", "a"], 2, "paper") == 0.5
    assert rep_n(["a", "b", "a", "b", "a"], 2, "official_code") == pytest.approx(0.6)


def test_diversity_of_a_b_a_b_a_by_hand() -> None:
    # Of two, three and four: 2 of 4, 2 of 3 and 2 of 2 are new; the code has 2/5, 2/4 and 2/3.
    assert diversity("a b a b a", "paper") == pytest.approx(1 / 2 * 2 / 3)
    assert diversity("a b a b a", "official_code") == pytest.approx(2 / 5 * 2 / 4 * 2 / 3)


@pytest.mark.parametrize(("count", "by_code"), [(4, 0.25), (10, 0.7), (50, 0.94)])
def test_distinct_words_score_one_and_by_the_code_less_the_fewer_they_are(count: int, by_code: float) -> None:
    text = " ".join(numbered(count))
    assert diversity(text, "paper") == 1
    assert diversity(text, "official_code") == pytest.approx(by_code)


@BOTH
@pytest.mark.parametrize("text", ["", "one", "one two", "one two three"])
def test_fewer_than_four_words_score_zero(text: str, convention: repetition.Convention) -> None:
    assert diversity(text, convention) == 0
    assert rep_n(words(text), 4, convention) == 1


@BOTH
def test_one_word_over_and_over_tends_to_no_diversity(convention: repetition.Convention) -> None:
    # Of two, three and four one is new each, of 99, 98 and 97 (by the code of one more each).
    more = convention == "official_code"
    expected = 1 / ((99 + more) * (98 + more) * (97 + more))
    assert diversity("a " * 100, convention) == pytest.approx(expected)


@given(LETTERS)
def test_diversity_is_in_the_unit_interval_lower_by_the_code_and_deaf_to_which_words_they_are(letters) -> None:
    text = " ".join(letters)
    paper, code = diversity(text, "paper"), diversity(text, "official_code")
    assert 0 <= code <= paper <= 1
    assert (code == paper) == (len(letters) < 4)
    assert diversity(text.replace("a", "zebra"), "paper") == pytest.approx(paper)


@pytest.mark.parametrize("text", ["", " \n\t", "no " * 8, "on and on " * 4])
def test_what_is_empty_or_goes_round_is_degenerate(text: str) -> None:
    assert is_degenerate(text)


@pytest.mark.parametrize(
    "text", ["Yes.", "no " * 7, " ".join(numbered(8)), "It rains, and where it rains the grass grows."]
)
def test_what_is_short_or_says_something_is_not_degenerate(text: str) -> None:
    assert not is_degenerate(text)


@given(st.integers(3, 30))
def test_at_one_half_of_the_four_grams_a_text_is_degenerate(period: int) -> None:
    # Going round k distinct words, 2 k + 3 words have 2 k four-grams, of which k are new.
    round_and_round = numbered(period) * 4
    assert is_degenerate(" ".join(round_and_round[: 2 * period + 3]))
    assert not is_degenerate(" ".join(round_and_round[: 2 * period + 2]))


@pytest.mark.parametrize(
    "text",
    [
        "I'm sorry, but I can't help with that.",
        "I\u2019m sorry, but no.",
        "  I AM SORRY but no.",
        "Sorry, but I would rather not.",
        "I apologize, but this is not possible.",
        "I'm sorry, I can't assist with that.",
        "Sorry, I can't help you there.",
        "I'm sorry. I won't do that.",
        "I apologize, I cannot answer.",
        "I'm afraid that I can't.",
        "I'm sorry for any confusion, but as an AI I have no hands.",
        "I won't answer.",
        "I cannot answer.",
        "I can\u2019t answer.",
        "I am unable to say.",
        "I'm not able to say.",
        "As an AI, I have no opinion.",
        "As a large language model I have none.",
        "As a language model, I have none.",
    ],
)
def test_a_refusal_is_known_by_its_opening(text: str) -> None:
    assert is_refusal(text)
    assert not is_refusal("Well. " + text)


@pytest.mark.parametrize(
    "text",
    [
        "",
        "As an aid to memory, write it down.",
        "I'm sorry to hear that.",
        "Sorry!",
        "I canoe.",
        "Sorry for the wait, but here it is.",
    ],
)
def test_other_openings_are_no_refusals(text: str) -> None:
    assert not is_refusal(text)


def test_a_copy_is_one_word_for_word() -> None:
    seen = TrainingTexts(["Because it rains.", " ".join(numbered(9))])
    assert seen.has("Because it  rains.\n")
    assert not seen.has("because it rains.")
    assert not seen.has("Because it rains. Often.")
    assert seen.copied("Because it rains.") == 0  # too short to be a run
    assert seen.copied(" ".join(numbered(9))) == 1


def test_the_words_of_a_copied_run_are_counted_once() -> None:
    # Ten copied words are three runs of eight; of twenty words they are one half.
    text = [*(f"x{i}" for i in range(4)), *numbered(10, start=5), *(f"y{i}" for i in range(6))]
    seen = TrainingTexts([" ".join(numbered(30))])
    assert seen.copied(" ".join(text)) == 0.5
    assert not seen.has(" ".join(text))


def test_seven_words_in_a_row_are_no_run() -> None:
    seen = TrainingTexts([" ".join(numbered(30))])
    assert seen.copied(" ".join([*numbered(7), "x", *numbered(7, start=7)])) == 0
    assert seen.copied(" ".join([*numbered(8), "x", *numbered(7, start=8)])) == 8 / 16


def test_a_run_does_not_cross_from_one_text_into_another() -> None:
    seen = TrainingTexts([" ".join(numbered(7)), " ".join(numbered(7, start=7))])
    assert seen.copied(" ".join(numbered(14))) == 0


@given(st.lists(LETTERS, max_size=4), LETTERS)
def test_copying_is_the_share_that_comparing_every_run_with_every_text_finds(texts, answer) -> None:
    found = set()
    for i in range(len(answer) - 7):
        run = answer[i : i + 8]
        if any(run == text[j : j + 8] for text in texts for j in range(len(text) - 7)):
            found |= set(range(i, i + 8))
    seen = TrainingTexts(" ".join(text) for text in texts)
    assert seen.copied(" ".join(answer)) == pytest.approx(len(found) / max(len(answer), 1))
    assert seen.has(" ".join(answer)) == (answer in texts)


def test_of_no_texts_nothing_is_a_copy() -> None:
    assert TrainingTexts([]).copied(" ".join(numbered(20))) == 0
    assert not TrainingTexts([]).has("a")
    assert TrainingTexts(["a"]).copied("") == 0
