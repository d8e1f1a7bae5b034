"""A run of the past is found by its id, its study's name or its file, and stands beside the store as it did."""

from __future__ import annotations

from pathlib import Path

import handmade
import pytest

from flows.past_runs import past_run
from specs.problems import UserError
from tasks.view import View

FIRST, SECOND = "aa11" * 8, "aa22" * 8
STUDY = handmade.STUDY.replace("quickstart-eval", "./prompts.jsonl")


@pytest.fixture
def study(tmp_path: Path, home: Path) -> View:
    """A study that ran twice, with one stage stored."""
    (tmp_path / "prompts.jsonl").write_text('{"prompt": "Why?"}\n' * 9)
    made = handmade.view(tmp_path, STUDY)
    handmade.put(made, "rolls", {"responses.jsonl": "x"})
    handmade.end(made, FIRST)
    handmade.end(made, SECOND)
    return made


def test_it_is_found_by_its_id_by_how_that_begins_and_by_its_study(study: View) -> None:
    asked = [FIRST, "aa11", SECOND, "small", str(study.folder / "s.yaml")]
    assert [past_run(name, study.home).id for name in asked] == [FIRST, FIRST, SECOND, SECOND, SECOND]


def test_what_fits_several_runs_or_none_is_told(study: View) -> None:
    for asked, told in (("aa", r"begins the ids of 2 runs"), ("smal", "did you mean `small`"), ("", "there are small")):
        with pytest.raises(UserError, match=told):
            past_run(asked, study.home)
    with pytest.raises(UserError, match=r"knows no run or study `aa`; `alignflow run` makes one"):
        past_run("aa", study.home / "elsewhere")


def test_it_stands_beside_the_store_as_it_did_though_its_data_have_gone(study: View) -> None:
    (study.folder / "prompts.jsonl").unlink()
    past = past_run("small", study.home)
    assert past.view.nodes == study.nodes
    assert past.stored("rolls") == study.stored("rolls")


def test_a_stage_that_cannot_be_had_is_told_with_the_reason(study: View) -> None:
    past = past_run("small", study.home)
    with pytest.raises(UserError, match=r"has no stage `rools`; did you mean `rolls`\?"):
        past.stored("rools")
    with pytest.raises(UserError, match="`pairs` of run aa22aa22 failed; run the study again"):
        past.stored("pairs")


def test_an_artifact_that_was_built_anew_since_is_not_taken_for_the_runs_own(study: View) -> None:
    handmade.put(study, "rolls", {"responses.jsonl": "y"}, finished="2026-11-22T00:00:00+00:00")
    with pytest.raises(UserError, match="`rolls` was built anew after run aa11aa11"):
        past_run(FIRST, study.home).stored("rolls")


def test_a_run_of_a_version_that_built_a_stage_otherwise_is_refused_with_its_commit(
    study: View, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(type(study.study.stages["rolls"]), "version", 99)
    with pytest.raises(
        UserError, match=r"AlignFlow has changed since run aa22aa22, and builds `rolls`, .* use the version that ran it"
    ):
        past_run("small", study.home)


def test_a_note_that_is_half_written_hides_no_other_run(study: View) -> None:
    run = past_run("small", study.home).id
    (study.home / "runs" / f"{'f' * 32}.json").write_text('{"study": {')
    assert past_run("small", study.home).id == run
    with pytest.raises(UserError, match="knows no run or study `ffff`"):
        past_run("ffff", study.home)
