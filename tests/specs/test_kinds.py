"""What a kind of stage does not take, said where it stands."""

from __future__ import annotations

from pathlib import Path

import pytest
from refusals import refusals

HEAD = """\
version: 1
name: s
models: {base: {source: ./m}}
data:
  prompts: {source: ./p.jsonl, format: prompt}
  others: {source: ./o.jsonl, format: prompt}
  pairs: {source: ./q.jsonl, format: preference}
rewards: {joy: {kind: lexicon}}
stages:
"""


def problems(folder: Path, stage: str) -> list[str]:
    return refusals(folder, f"{HEAD}  a: {{{stage}}}\n")


@pytest.mark.parametrize("do", ["rl", "bond"])
def test_what_samples_and_learns_with_one_policy_takes_no_dropout(tmp_path: Path, do: str) -> None:
    assert problems(tmp_path, f"do: {do}, from: base, prompts: prompts, reward: joy, lora: {{dropout: 0.1}}") == [
        "stages.a  samples and learns with one policy, which dropout would make two; set `lora.dropout: 0`"
    ]


@pytest.mark.parametrize("do", ["rl", "bond"])
def test_what_draws_its_own_answers_takes_no_length_of_dialogues(tmp_path: Path, do: str) -> None:
    for field in ("max_length: 64", "too_long: truncate_left"):
        (line,) = problems(tmp_path, f"do: {do}, from: base, prompts: prompts, reward: joy, {field}")
        assert line.startswith(f"stages.a.{field.split(':')[0]}  unknown key")


def test_a_stage_that_is_given_its_pairs_takes_nothing_about_drawing_them(tmp_path: Path) -> None:
    given, drawn = "do: dpo, from: base, data: pairs", "do: dpo, from: base, prompts: prompts, reward: joy"
    fields = {"samples": "4", "max_new_tokens": "32", "min_gap": "0.5"}
    every = ", ".join(f"{key}: {value}" for key, value in fields.items())
    assert problems(tmp_path, f"{given}, {every}") == [
        f"stages.a.{key}  is for pairs that the stage draws itself, and `data` has its own; leave it out"
        for key in fields
    ]
    assert problems(tmp_path, f"{given}, samples: 8") == []  # a default written out moves no fingerprint
    assert problems(tmp_path, f"{drawn}, {every}") == []


def test_a_stage_that_ranks_the_datas_own_answers_takes_no_length_of_drawn_ones(tmp_path: Path) -> None:
    ranked = "do: rrhf, from: base, data: pairs, reward: joy, max_new_tokens: 32"
    assert problems(tmp_path, f"{ranked}, candidates: {{by: data}}") == [
        "stages.a.max_new_tokens  is for candidates that the stage draws itself, and it draws none; leave it out"
    ]
    assert problems(tmp_path, ranked) == []


def test_what_could_have_no_effect_is_refused(tmp_path: Path) -> None:
    ranked = "do: rrhf, from: base, reward: joy, candidates: {by: beam, data: false}"
    told = "stages.a.candidates.data  `prompts` is prompts, which have no answers; leave it out"
    assert problems(tmp_path, f"{ranked}, data: prompts") == [told]
    assert problems(tmp_path, f"{ranked}, data: pairs") == []
    raft = "do: raft, from: base, prompts: prompts, reward: joy, kl_penalty: 0.1"
    told = "is taken off from the second round on, and there is one; raise `rounds`, or leave it out"
    assert problems(tmp_path, raft) == [f"stages.a.kl_penalty  {told}"]
    assert problems(tmp_path, f"{raft}, rounds: 2") == []


def test_prompts_that_are_learnt_from_are_not_held_out(tmp_path: Path) -> None:
    told = "are the prompts it learns from, which would tell nothing; name others"
    raft = "do: raft, from: base, prompts: prompts, reward: joy"
    assert problems(tmp_path, f"{raft}, held_out: prompts") == [f"stages.a.held_out  {told}"]
    assert problems(tmp_path, f"{raft}, held_out: others") == []


@pytest.mark.parametrize("how", ["sample", "beam", "diverse_beam"])
def test_one_candidate_alone_has_nothing_to_be_ranked_against(tmp_path: Path, how: str) -> None:
    def ranked(data: str, more: str = "") -> str:
        return f"do: rrhf, from: base, data: {data}, reward: joy, candidates: {{by: {how}, count: 1{more}}}"

    wrong = "so one candidate has nothing to be ranked against; draw more"
    assert problems(tmp_path, ranked("prompts")) == [f"stages.a.candidates.count  `prompts` has no answers, {wrong}"]
    assert problems(tmp_path, ranked("pairs", ", data: false")) == [
        f"stages.a.candidates.count  the data's answers are no candidates, {wrong}"
    ]
    assert problems(tmp_path, ranked("pairs")) == []
