"""One row of each form and each reason to drop one, what the person is told, and the split.

The rules for an implicit prompt are TRL's, and so are the examples.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from registry.dialogues import FORMS
from registry.rows import Pair, Prompt, Rows, Unusable, check_dropped, collect, part, too_many
from specs.problems import UserError


def user(text: str) -> dict[str, str]:
    return {"role": "user", "content": text}


def assistant(text: str) -> dict[str, str]:
    return {"role": "assistant", "content": text}


def system(text: str) -> dict[str, str]:
    return {"role": "system", "content": text}


def normal(form: str, *raw: Any, columns: Mapping[Any, str] | None = None) -> Rows[Any]:
    return collect(enumerate(raw, 1), FORMS[form], columns or {})


def sides(chosen: Any, rejected: Any, **prompt: Any) -> dict[str, Any]:
    return {"chosen": chosen, "rejected": rejected, **prompt}


def hh(*turns: str) -> str:
    return "".join(f"\n\n{'Assistant' if i % 2 else 'Human'}: {turn}" for i, turn in enumerate(turns))


def test_an_hh_dialogue_is_split_before_its_last_answer() -> None:
    row = sides(hh("Hi", "Hello", "Why?", "Because."), hh("Hi", "Hello", "Why?", "No."))
    prompt = (user("Hi"), assistant("Hello"), user("Why?"))
    assert normal("hh_rlhf", row).rows == (Pair(prompt, "Because.", "No."),)


def test_a_speaker_is_recognised_only_at_the_start_of_a_paragraph() -> None:
    said = "Human: is a word\n\nHumans: too"
    assert normal("hh_rlhf", sides(hh(said, "yes"), hh(said, "no"))).rows == (Pair((user(said),), "yes", "no"),)


SKY, BLUE, GREEN = user("What color is the sky?"), assistant("Blue."), assistant("Green.")
SKY_PAIR = Pair((SKY,), "Blue.", "Green.")

SPELLINGS: dict[str, tuple[dict[str, Any], Pair]] = {
    "plain text, a prompt": (
        sides(" blue.", " green.", prompt="The sky is"),
        Pair((user("The sky is"),), " blue.", " green."),
    ),
    "plain text, no prompt": (
        sides("The sky is blue.", "The sky is green."),
        Pair((user("The sky is"),), " blue.", " green."),
    ),
    "plain text, one answer within the other": (
        sides("It is a", "It is a b"),
        Pair((user("It is "),), "a", "a b"),
    ),
    "messages, a prompt": (sides([BLUE], [GREEN], prompt=[SKY]), SKY_PAIR),
    "messages, no prompt": (sides([SKY, BLUE], [SKY, GREEN]), SKY_PAIR),
    "messages that repeat a plain prompt": (
        sides([SKY, BLUE], [SKY, GREEN], prompt=SKY["content"]),
        SKY_PAIR,
    ),
    "a prompt of messages, answers of text": (
        sides("Blue.", "Green.", prompt=[system("Be brief."), SKY]),
        Pair((system("Be brief."), SKY), "Blue.", "Green."),
    ),
    "columns of a table that hold nothing": (
        sides([{**SKY, "tool_calls": None}, BLUE], [SKY, GREEN], prompt=None),
        SKY_PAIR,
    ),
}


@pytest.mark.parametrize(("row", "pair"), SPELLINGS.values(), ids=SPELLINGS)
def test_every_spelling_of_a_preference_gives_a_pair(row: dict[str, Any], pair: Pair) -> None:
    assert normal("preference", row).rows == (pair,)


@given(st.text("ab ", max_size=6), st.text("ab ", max_size=6))
def test_a_plain_pair_without_a_prompt_loses_no_text(chosen: str, rejected: str) -> None:
    for pair in normal("preference", sides(chosen, rejected)).rows:
        start = pair.prompt[0]["content"]
        assert (start + pair.chosen, start + pair.rejected) == (chosen, rejected)


def test_a_prompt_is_text_or_messages() -> None:
    dialogue = [system("Be brief."), user("Hi"), assistant("Hello"), user("Why?")]
    rows = normal("prompt", {"prompt": "Hi"}, {"prompt": dialogue}).rows
    assert rows == (Prompt((user("Hi"),)), Prompt(tuple(dialogue)))


def test_the_id_of_a_prompt_depends_on_its_messages_and_nothing_else() -> None:
    assert Prompt((user("Hi"),)).id == "d7760b4ba3077c46"
    assert Prompt(({"content": "Hi", "role": "user"},)).id == Prompt((user("Hi"),)).id
    assert Prompt((system("Hi"), user("Hi"))).id != Prompt((user("Hi"),)).id


GOOD = hh("Hi", "Hello")

APART = "chosen and rejected do not share the dialogue before the last answer"
TWICE = "two turns of one speaker in a row"
NO_PROMPT = "chosen and rejected share no prompt"
HH_TEXT = "an HH-RLHF dialogue without a prompt, which `format: hh_rlhf` reads"
LATE = "`chosen` is not one assistant turn after the prompt"
TOOL = {"role": "tool", "content": "3"}

REASONS: list[tuple[str, Any, str]] = [
    ("hh_rlhf", {"chosen": GOOD}, "`rejected` is missing"),
    ("hh_rlhf", sides(None, GOOD), "`chosen` is missing"),
    ("hh_rlhf", sides(GOOD, 3), "`rejected` is not text"),
    ("hh_rlhf", sides("Hi", GOOD), "`chosen` does not begin with a Human turn"),
    ("hh_rlhf", sides(GOOD, GOOD + hh("Oh")), "`rejected` does not end in an Assistant turn"),
    ("hh_rlhf", sides(GOOD, hh("Hey", "Hello")), APART),
    ("hh_rlhf", sides(f"{GOOD}\n\nAssistant: 1", f"{GOOD}\n\nAssistant: 2"), TWICE),
    ("hh_rlhf", sides(hh("", "1"), hh("", "2")), "empty prompt"),
    ("hh_rlhf", sides(hh("a", "", "b", "1"), hh("a", "", "b", "2")), "empty turn in the prompt"),
    ("hh_rlhf", sides(GOOD, hh("Hi", " ")), "empty answer"),
    ("hh_rlhf", sides(GOOD, GOOD), "chosen equals rejected"),
    ("preference", sides(GOOD, hh("Hi", "No")), HH_TEXT),
    ("preference", sides("a b", [SKY, BLUE]), "`chosen` and `rejected` are of different kinds"),
    ("preference", sides("yes", "no"), NO_PROMPT),
    ("preference", sides([SKY, BLUE], [user("Hi"), GREEN]), NO_PROMPT),
    ("preference", sides([SKY, BLUE], [GREEN], prompt=[SKY]), LATE),
    ("preference", sides(1, 2, prompt="a"), "`chosen` is neither text nor messages"),
    ("preference", sides("", "b", prompt="a"), "empty answer"),
    ("preference", sides("b", "b", prompt="a"), "chosen equals rejected"),
    ("prompt", {"prompt": " "}, "empty prompt"),
    ("prompt", {"prompt": []}, "`prompt` has no user turn"),
    ("prompt", {"prompt": [system("Be brief.")]}, "`prompt` has no user turn"),
    ("prompt", {"prompt": [BLUE, SKY]}, "`prompt` does not begin with a user turn"),
    ("prompt", {"prompt": [SKY, BLUE]}, "`prompt` does not end in a user turn"),
    ("prompt", {"prompt": [SKY, SKY]}, TWICE),
    ("prompt", {"prompt": [SKY, system("no")]}, "a system message after the first message"),
    ("prompt", {"prompt": [{"from": "human"}]}, "a message of `prompt` lacks `role` or `content`"),
    (
        "prompt",
        {"prompt": [TOOL]},
        "a message of `prompt` has a role other than system, user, assistant",
    ),
    ("prompt", {"prompt": [{"role": "user", "content": None}]}, "`prompt.content` is not text"),
    ("prompt", {"prompt": "half \ud83d"}, "`prompt` is not valid Unicode"),
    ("prompt", ["a list"], "not a JSON object"),
    ("prompt", Unusable("not JSON"), "not JSON"),
]


@pytest.mark.parametrize(("form", "row", "reason"), REASONS)
def test_an_unusable_row_is_dropped_with_its_reason(form: str, row: Any, reason: str) -> None:
    rows = normal(form, row)
    assert (rows.rows, rows.read, rows.dropped) == ((), 1, {reason: 1})


def test_columns_of_another_name_are_found_and_named_in_the_reasons() -> None:
    mapped = {"prompt": "question", "chosen": "rejected", "rejected": "chosen"}
    good = {"question": "a", "rejected": "b", "chosen": "c"}
    rows = normal("preference", good, {**good, "chosen": None}, columns=mapped)
    assert rows.rows == (Pair((user("a"),), "b", "c"),)
    assert rows.dropped == {"`chosen` is missing": 1}


def test_a_prompt_column_that_was_named_must_be_there() -> None:
    row = sides("The sky is blue.", "The sky is green.")
    rows = normal("preference", row, columns={"prompt": "question"})
    with pytest.raises(UserError, match="no row has the column `question`"):
        check_dropped(rows, "100%", "data.pairs")


def some(kept: int, **dropped: tuple[int, int]) -> Rows[Prompt]:
    prompts = tuple(Prompt((user(str(i)),)) for i in range(kept))
    counts = {reason: count for reason, (count, _) in dropped.items()}
    first = {reason: row for reason, (_, row) in dropped.items()}
    return Rows(prompts, kept + sum(counts.values()), counts, first)


def test_too_many_dropped_rows_are_one_line_with_reasons_counts_and_places() -> None:
    rows = some(959, **{"not JSON": (1, 500), "`rejected` is missing": (40, 18)})
    with pytest.raises(UserError) as error:
        check_dropped(rows, "1%", "data.pairs")
    assert str(error.value) == (
        "data.pairs: 41 of 1000 rows (4.1 %) cannot be used, more than max_dropped 1%: "
        "`rejected` is missing: 40 (first: row 18), not JSON: 1 (row 500); "
        "mend the file or raise max_dropped"
    )


@pytest.mark.parametrize("percent", [1, 7, 14, 28, 29, 55, 57, 58])
def test_a_limit_is_met_exactly_whatever_its_binary_fraction(percent: int) -> None:
    assert not too_many(percent, 100, f"{percent}%")
    assert too_many(percent + 1, 100, f"{percent}%")


def test_exactly_max_dropped_is_not_too_many() -> None:
    # 0.7 / 100 is less than 7 / 1000 in binary fractions.
    check_dropped(some(993, bad=(7, 1)), "0.7%", "data.pairs")
    with pytest.raises(UserError):
        check_dropped(some(992, bad=(8, 1)), "0.7%", "data.pairs")


@pytest.mark.parametrize(
    ("rows", "line"),
    [
        (some(0), "data.pairs: there are no rows; the source is empty"),
        (
            some(0, bad=(3, 1)),
            "data.pairs: none of 3 rows can be used: bad: 3 (first: row 1); mend the file",
        ),
    ],
)
def test_nothing_left_is_an_error_whatever_max_dropped_says(rows: Rows[Any], line: str) -> None:
    with pytest.raises(UserError) as error:
        check_dropped(rows, "100%", "data.pairs")
    assert str(error.value) == line


def test_a_column_that_no_row_has_is_named_with_those_there_are_and_the_remedy() -> None:
    rows = normal("preference", {"prompt": "a", "good": "b", "bad": "c"}, Unusable("not JSON"))
    with pytest.raises(UserError) as error:
        check_dropped(rows, "100%", "data.pairs")
    assert str(error.value) == (
        "data.pairs: no row has the columns `chosen` and `rejected`; the columns are `prompt`, "
        "`good`, `bad`; name the right one with `columns: {chosen: <name>, rejected: <name>}`"
    )


openings = st.lists(st.integers(0, 30), min_size=1, max_size=60)


def prompts(numbers: list[int]) -> tuple[Prompt, ...]:
    """Rows with few openings; what follows an opening differs from row to row."""
    return tuple(Prompt((user(f"topic {n}"), assistant("Go on."), user(f"row {i}"))) for i, n in enumerate(numbers))


def parts(rows: tuple[Prompt, ...], split: dict[str, int]) -> dict[str, tuple[Prompt, ...]] | None:
    try:
        return {name: part(rows, split, name) for name in split}
    except UserError:
        return None


@given(openings, st.integers(1, 8), st.integers(1, 4))
def test_parts_have_their_sizes_are_disjoint_and_keep_groups_whole(
    numbers: list[int], train: int, evaluation: int
) -> None:
    rows = prompts(numbers)
    split = parts(rows, {"train": train, "eval": evaluation})
    if split is not None:
        assert (len(split["train"]), len(split["eval"])) == (train, evaluation)
        one, other = ({row.messages[0]["content"] for row in split[p]} for p in split)
        assert not one & other
        for name, kept in (("train", one), ("eval", other)):
            assert split[name] == tuple(r for r in rows if r.messages[0]["content"] in kept)


@given(st.permutations(range(24)))
def test_a_part_does_not_depend_on_the_order_of_the_file(order: list[int]) -> None:
    rows = tuple(Prompt((user(f"topic {i // 2} {'x' * (i % 2)}"),)) for i in range(24))
    split = {"train": 12, "eval": 7}
    for name in split:
        kept = part([rows[i] for i in order], split, name)
        assert set(map(rows.index, kept)) == set(map(rows.index, part(rows, split, name)))


@given(st.sets(st.text(max_size=8), min_size=3, max_size=30))
def test_distinct_prompts_fill_any_parts_that_fit(texts: set[str]) -> None:
    distinct = {" ".join(text.lower().split()): text for text in texts}
    rows = tuple(Prompt((user(text),)) for text in distinct.values())
    if len(rows) >= 2:
        split = parts(rows, {"train": len(rows) - 1, "eval": 1})
        assert split is not None and len(split["train"]) + len(split["eval"]) == len(rows)


def test_prompts_that_differ_in_case_and_white_space_stay_in_one_part() -> None:
    rows = [Prompt((user(text),)) for text in ("Hi there", "hi  THERE\n")]
    with pytest.raises(UserError, match="part `a` gets 0 of its 1 rows, though 2 are there"):
        part(rows, {"a": 1, "b": 1}, "b", "data.prompts")


def test_the_order_in_which_parts_are_written_changes_nothing() -> None:
    # It is not in the fingerprint either: keys of a mapping have no order.
    rows = prompts([0, 0, 0, 1, 2, 2, 3, 4, 5, 5])
    one, other = parts(rows, {"train": 4, "eval": 3}), parts(rows, {"eval": 3, "train": 4})
    assert one is not None and one == other


def test_a_split_that_asks_for_too_much_says_how_many_rows_there_are() -> None:
    with pytest.raises(UserError) as error:
        part(some(5).rows, {"train": 4, "eval": 2}, "train", "data.prompts")
    assert str(error.value) == ("data.prompts: `split` asks for 6 rows (train: 4, eval: 2) and 5 can be used; lower it")
