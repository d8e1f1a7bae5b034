"""Rows that are too long to learn from are told of before anything is spent on them: drawn, or scored."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import letters
import pytest
import stages
import tiny

from specs.problems import UserError
from tasks import answers, scores, train_rrhf

LONG = ["abc", "abcde", "fg", "abcdef"]
"""Prompts of three, five, two and six tokens."""
DRAWN = {
    "raft": "do: raft, from: base, prompts: prompts, reward: worth, samples: 2, held_out: others",
    "dpo": "do: dpo, from: base, prompts: prompts, reward: worth, samples: 2",
    "rrhf": "do: rrhf, from: base, data: prompts, reward: worth",
    "beams": "do: rrhf, from: base, data: prompts, reward: worth, candidates: {by: beam, count: 2}",
}
SCORED = {
    "data.pairs": "do: rrhf, from: base, data: pairs, reward: worth, candidates: {by: data}",
    "rolls": "do: prefix_scorer, loss: cd_fudge, from: base, responses: rolls, reward: worth",
}


class Spent(Exception):
    """What stands for an hour."""


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return letters.language_model(tmp_path_factory.mktemp("letters") / "base")


@pytest.fixture
def study(tmp_path: Path, base: Path) -> Any:
    tiny.write_lines(tmp_path / "prompts.jsonl", [{"prompt": p} for p in LONG])
    tiny.write_lines(tmp_path / "pairs.jsonl", [{"prompt": p, "chosen": "abcd", "rejected": "g"} for p in LONG])
    tiny.language_model(tmp_path / "bytewise")

    def made(fields: str, dropped: str = "49%") -> Any:
        return stages.study(
            tmp_path,
            f"""\
models: {{base: {{source: {base}, precision: fp32}}, other: {{source: ./bytewise, precision: fp32}}}}
data:
  prompts: {{source: ./prompts.jsonl, format: prompt, max_dropped: {dropped}}}
  others: {{source: ./prompts.jsonl, format: prompt}}
  pairs: {{source: ./pairs.jsonl, format: preference, max_dropped: {dropped}}}
rewards: {{worth: {{kind: python, target: "letters:worth"}}}}
stages:
  rolls: {{do: sample, from: base, prompts: prompts, samples: 2, max_new_tokens: 4}}
  made: {{{fields}}}
""",
        )

    return made


@pytest.fixture
def nothing_drawn(monkeypatch: pytest.MonkeyPatch) -> None:
    def spent(*_: Any, **__: Any) -> None:
        raise Spent

    monkeypatch.setattr(answers, "sample", spent)
    monkeypatch.setattr(train_rrhf, "beam_search", spent)


@pytest.fixture
def nothing_scored(monkeypatch: pytest.MonkeyPatch) -> None:
    def spent(*_: Any, **__: Any) -> None:
        raise Spent

    monkeypatch.setattr(scores, "scorer", spent)


@pytest.mark.parametrize("kind", DRAWN)
def test_prompts_that_leave_no_room_for_an_answer_are_told_before_one_is_drawn(
    study: Any, nothing_drawn: None, kind: str
) -> None:
    # Five and six tokens with four new ones are more than eight; two rows of four are more than 49 %.
    fields = f"{DRAWN[kind]}, max_new_tokens: 4, max_length: 8"
    with pytest.raises(UserError) as caught:
        stages.build(study(fields), "made")
    assert str(caught.value) == (
        "data.prompts: 2 of 4 rows (50 %) are longer than 8 tokens with an answer of 4; 49% may be dropped; raise "
        "`max_length` or lower `max_new_tokens` or set `too_long: truncate_left` or raise `max_dropped`"
    )


@pytest.mark.parametrize("kind", DRAWN)
@pytest.mark.parametrize(
    ("fields", "dropped"),
    [
        ("max_new_tokens: 4, max_length: 9", "49%"),
        ("max_new_tokens: 3, max_length: 8", "49%"),
        ("max_new_tokens: 4, max_length: 8, too_long: truncate_left", "49%"),
        ("max_new_tokens: 4, max_length: 8", "50%"),
    ],
)
def test_each_remedy_lets_it_draw(study: Any, nothing_drawn: None, kind: str, fields: str, dropped: str) -> None:
    with pytest.raises(Spent):
        stages.build(study(f"{DRAWN[kind]}, {fields}", dropped), "made")


@pytest.mark.parametrize("name", SCORED)
def test_answers_that_are_too_long_are_told_before_they_are_scored(study: Any, nothing_scored: None, name: str) -> None:
    view = study(f"{SCORED[name]}, max_length: 8")
    if name == "rolls":
        stages.build(view, "rolls")
        folder = view.artifact("rolls").folder
        rows = [
            {"prompt": [{"role": "user", "content": p}], "responses": [{"text": "abcd", "finished": True}]}
            for p in LONG
        ]
        tiny.write_lines(folder / "responses.jsonl", rows)
    with pytest.raises(UserError, match=rf"^{name}: 2 of 4 rows \(50 %\) are longer than 8 tokens; "):
        stages.build(view, "made")


def test_a_reference_with_other_tokens_is_refused_before_answers_are_scored(study: Any, nothing_scored: None) -> None:
    view = study("do: prefix_scorer, loss: cd_q, from: base, reference: other, responses: rolls, reward: worth")
    stages.build(view, "rolls")
    with pytest.raises(UserError, match=r"^`other` and `base` have different tokens, so "):
        stages.build(view, "made")
