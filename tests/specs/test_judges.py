"""Judges in a study: who may name one, where its key stands, and what makes it another judge."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from refusals import refusals

from specs.load import load
from specs.plan import Fact, steps

STUDY = """\
version: 1
name: s
models: {base: {source: ./m}}
data: {prompts: {source: ./p.jsonl, format: prompt}}
rewards: {joy: {kind: lexicon}}
judges:
  careful: {base_url: "http://127.0.0.1:9000/v1", model: some-model}
stages:
  bon: {do: decode, method: best_of_n, from: base, reward: joy, n: 4}
  table: {do: evaluate, policies: [base, bon], against: base, prompts: prompts, rewards: [joy], judges: [careful]}
"""


def prints(folder: Path, old: str = "", new: str = "") -> dict[str, str]:
    path = folder / "s.yaml"
    path.write_text(STUDY.replace(old, new) if old else STUDY)
    facts = {"base": Fact({"sha256": "a"}), "prompts": Fact({"sha256": "b"})}
    return {name: step.fingerprint for name, step in steps(load(path, environment={"KEY": "x"}).study, facts).items()}


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        (
            "judges: [careful]",
            "judges: [joy]",
            "judges[0]  `joy` is a reward; this takes a judge; what fits: `careful`",
        ),
        ("judges: [careful]", "judges: [carefull]", "`carefull` is not defined; did you mean `careful`?"),
        (
            "rewards: [joy]",
            "rewards: [careful]",
            "rewards[0]  `careful` is a judge; this takes a reward; what fits: `joy`",
        ),
        ("reward: joy", "reward: careful", "stages.bon.reward  `careful` is a judge; this takes a reward"),
        ("model: some-model", "modle: some-model", "judges.careful.modle  unknown key; did you mean `model`?"),
        (", model: some-model", "", "judges.careful.model  is missing; add `model:`"),
        ("careful: {", "joy: {", "`joy` is also in `rewards`"),
        ('"http://127.0.0.1:9000/v1"', "127.0.0.1:9000", "an address is written `https://host/v1`"),
        ("9000/v1", "9000/v1?key=1", "an address is written `https://host/v1`"),
        (":9000/", ":port/", "Port could not be cast to integer value as 'port'"),
        ("127.0.0.1", "${env:HOST}", "by its address, so it stands here in full"),
        ("some-model", "'${env:MODEL}'", "`${env:}` stands only in paths, in `tracking.uri` and in `api_key`"),
        ("some-model}", "some-model, pairs_per_prompt: 0}", "must be greater than or equal to 1, not `0`"),
        ("some-model}", "some-model, timeout: 5}", "takes text, not `5`"),
    ],
)
def test_a_mistake_is_told_at_its_place(tmp_path: Path, old: str, new: str, message: str) -> None:
    assert STUDY.count(old) == 1
    found = refusals(tmp_path, STUDY.replace(old, new))
    assert any(message in line for line in found), found


def test_more_pairs_than_samples_are_refused(tmp_path: Path) -> None:
    three = STUDY.replace("some-model}", "some-model, pairs_per_prompt: 3}")
    assert refusals(tmp_path, three) == [
        "stages.table.judges[0]  `careful` is shown 3 pairs of samples a prompt, and there are 2; raise "
        "`budget.samples_per_prompt`, or lower its `pairs_per_prompt`"
    ]
    assert refusals(tmp_path, three.replace("judges: [c", "budget: {samples_per_prompt: 3}, judges: [c")) == []


@pytest.mark.parametrize("key", ["sk-geheim", "'sk-${env:KEY}'", "'${KEY}'", "4711", "[geheim]"])
def test_a_key_written_in_a_study_is_refused_without_showing_it(tmp_path: Path, key: str) -> None:
    assert refusals(tmp_path, STUDY.replace("some-model}", f"some-model, api_key: {key}}}")) == [
        "judges.careful.api_key  a key in a study file would be shown by every server; write `${env:NAME}` for it"
    ]


def test_nor_is_a_password_in_the_address_shown(tmp_path: Path) -> None:
    (line,) = refusals(tmp_path, STUDY.replace("127.0.0.1", "me:geheim@host"))
    assert line.startswith("judges.careful.base_url  a password here would be shown") and "geheim" not in line


def test_a_key_stands_in_the_environment_and_nowhere_else(tmp_path: Path) -> None:
    path = tmp_path / "s.yaml"
    path.write_text(STUDY.replace("some-model}", "some-model, api_key: '${env:KEY}'}"))
    study = load(path, environment={"KEY": "geheim"}).study
    assert study.judges["careful"].api_key == "${env:KEY}"
    assert "geheim" not in json.dumps(study.model_dump(mode="json"))
    (told,) = refusals(tmp_path, path.read_text())
    assert told == "judges.careful.api_key  the environment variable `KEY` is not set"


@pytest.mark.parametrize(
    ("field", "is_identity"),
    [
        ("pairs_per_prompt: 2", True),
        ("instruction: Which is shorter?", True),
        ("api_key: '${env:KEY}'", False),
        ("parallel: 8", False),
        ("timeout: 5m", False),
    ],
)
def test_what_is_asked_bears_identity_and_how_it_is_asked_does_not(
    tmp_path: Path, field: str, is_identity: bool
) -> None:
    before, after = prints(tmp_path), prints(tmp_path, "some-model}", f"some-model, {field}}}")
    moved = {name for name in before if before[name] != after[name]}
    assert moved == ({"careful", "table"} if is_identity else set())


def test_another_model_or_another_endpoint_is_another_judge_and_another_name_is_not(tmp_path: Path) -> None:
    before = prints(tmp_path)
    for old, new in (("some-model", "other-model"), ("9000", "9001"), ("/v1", "/v2")):
        assert prints(tmp_path, old, new)["table"] != before["table"]
    assert prints(tmp_path, "/v1", "/v1/")["table"] == before["table"]
    assert prints(tmp_path, "careful", "stern")["table"] == before["table"]


def test_an_expectation_may_be_of_a_judge(tmp_path: Path) -> None:
    def expecting(metric: str) -> list[str]:
        return refusals(tmp_path, STUDY.replace("judges: [c", f'expect: {{bon: {{{metric}: ">= 0.5"}}}}, judges: [c'))

    assert expecting("judge.careful") == []
    (told,) = expecting("judge.carefull")
    assert told.endswith("`judge.carefull` is not a metric of this stage; did you mean `judge.careful`?")
    (told,) = expecting("judge.joy")
    assert "is not a metric of this stage" in told
