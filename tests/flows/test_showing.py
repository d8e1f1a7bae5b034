"""`alignflow show`: where a study or one of its stages stands, told from the store alone."""

from __future__ import annotations

import json
from pathlib import Path

import evaluated
import handmade
import pytest
from command import told

from tasks.view import View


@pytest.fixture
def study(tmp_path: Path, home: Path, monkeypatch: pytest.MonkeyPatch) -> View:
    """Two stages are built, of the others one never was."""
    monkeypatch.chdir(tmp_path)
    made = handmade.view(tmp_path)
    handmade.put(made, "rolls", {"responses.jsonl": "x" * 1234}, {"responses": 32.0, "tokens": 0.123456789})
    handmade.put(made, "bon[n=2]", {"rule.json": "{}"})
    handmade.end(made)
    return made


def test_a_study_is_a_line_for_each_stage(study: View, capsys: pytest.CaptureFixture[str]) -> None:
    status, (head, *lines), err = told(capsys, "show", "s.yaml")
    assert (status, err) == (0, [])
    assert head == f"small  ({study.home}/studies/small)"
    short = {name: planned.step.fingerprint[:16] for name, planned in study.planned.items()}
    assert [" ".join(line.split()) for line in lines] == [
        f"rolls {short['rolls']} stored 12.3 s responses 32, tokens 0.1235",
        f"pairs {short['pairs']} never ran",
        f"sft {short['sft']} never ran",
        f"bon[n=2] {short['bon[n=2]']} stored 12.3 s",
        f"bon[n=4] {short['bon[n=4]']} never ran",
        f"table {short['table']} never ran",
    ]


def test_what_changed_since_the_last_run_is_said(study: View, capsys: pytest.CaptureFixture[str]) -> None:
    lines = told(capsys, "show", "s.yaml", "--set", "stages.rolls.samples=9")[1]
    assert "changed: samples 2 -> 9" in lines[1]


def test_a_study_as_json_has_what_the_lines_have(study: View, capsys: pytest.CaptureFixture[str]) -> None:
    shown = json.loads("\n".join(told(capsys, "show", "s.yaml", "--json")[1]))
    rolls, pairs = shown["stages"][:2]
    stored = study.stored("rolls")
    assert stored is not None
    assert rolls == {
        "name": "rolls", "kind": "sample", "state": "cached", "fingerprint": stored.record["fingerprint"],
        "folder": str(stored.folder), "seconds": 12.34, "metrics": {"responses": 32.0, "tokens": 0.123456789},
    }  # fmt: skip
    assert (pairs["state"], pairs["folder"], pairs["seconds"], pairs["metrics"]) == ("run", None, None, {})


def test_a_stage_is_shown_with_its_files_its_numbers_and_its_neighbours(
    study: View, capsys: pytest.CaptureFixture[str]
) -> None:
    status, lines, _ = told(capsys, "show", "s.yaml", "rolls")
    stored = study.stored("rolls")
    assert stored is not None
    assert status == 0
    assert [" ".join(line.split()) for line in lines] == [
        f"rolls: sample {stored.record['fingerprint'][:16]}, cached (stored)",
        f"made of from: base {study.nodes['base'].fingerprint[:16]}",
        f"made of prompts: prompts.train {study.nodes['prompts.train'].fingerprint[:16]}",
        "used by pairs",
        f"folder {stored.folder}",
        "file responses.jsonl 1,234 bytes",
        "metric responses 32",
        "metric tokens 0.123457",
        "built 2026-11-21T10:11:12 UTC in 12.3 s on workbench",
        "MLflow run run-of-sample",
    ]


def test_of_an_evaluation_its_table_is_shown(study: View, capsys: pytest.CaptureFixture[str]) -> None:
    evaluated.put(study)
    status, lines, _ = told(capsys, "show", "s.yaml", "table")
    assert status == 0 and "table: 8 prompts, 95 % intervals" in "\n".join(lines)


def test_a_stage_that_was_not_built_shows_what_it_is_to_be_made_of(
    study: View, capsys: pytest.CaptureFixture[str]
) -> None:
    lines = told(capsys, "show", "s.yaml", "bon[n=4]")[1]
    assert lines[0].startswith("bon[n=4]: decode ")
    assert lines[0].endswith(", run (never ran)")
    assert [line.split()[:3] for line in lines[1:]] == [
        ["made", "of", "from:"],
        ["made", "of", "reward:"],
        ["used", "by", "table"],
    ]
    shown = json.loads("\n".join(told(capsys, "show", "s.yaml", "bon[n=4]", "--json")[1]))
    assert (shown["folder"], shown["record"], shown["used_by"]) == (None, None, ["table"])
    assert [slot["name"] for slot in shown["made_of"]] == ["base", "gold"]


def test_a_stage_that_is_not_there_is_told_with_the_nearest(study: View, capsys: pytest.CaptureFixture[str]) -> None:
    assert told(capsys, "show", "s.yaml", "pears") == (
        2, [], ["`small` has no stage `pears`; did you mean `pairs`?"],
    )  # fmt: skip
    assert told(capsys, "show", "s.yaml", "xyz")[2] == [
        "`small` has no stage `xyz`; there are rolls, pairs, sft, bon[n=2], bon[n=4], table"
    ]
