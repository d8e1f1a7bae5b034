"""`alignflow gc`: what no study's last run needs goes, on request only; what one needs, or is being built, stays."""

from __future__ import annotations

import json
from pathlib import Path

import handmade
import pytest
from command import told

from registry.store import Stored, locked
from tasks.view import View

STAGES = ("rolls", "pairs", "sft")


@pytest.fixture
def study(tmp_path: Path, home: Path) -> View:
    """Its last run built three stages."""
    made = handmade.view(tmp_path)
    for name in STAGES:
        handmade.put(made, name, {"made.jsonl": name})
    handmade.end(made)
    return made


def old(folder: Path, megabytes: float = 0.0) -> Stored:
    """An artifact that a study of the same name had before its seed was changed."""
    before = handmade.view(folder, handmade.STUDY.replace("seed: 3", "seed: 2"))
    return handmade.put(before, "rolls", {"made.jsonl": "x" * int(megabytes * 1e6)})


def gc(capsys: pytest.CaptureFixture[str], *options: str) -> tuple[list[str], str]:
    """The places that it lists, and its last line."""
    status, (*lines, last), err = told(capsys, "gc", *options)
    assert (status, err) == (0, [])
    return [line.split("MB  ")[1] for line in lines], last


def place(stored: Stored) -> str:
    return f"store/{stored.folder.parent.name}/{stored.folder.name}"


def test_a_home_without_a_store_has_nothing_to_collect(home: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert gc(capsys) == ([], "0 artifacts, 0.0 MB would go; `alignflow gc --delete` deletes them")
    assert not home.exists()


def test_what_a_last_run_needs_is_not_listed(study: View, capsys: pytest.CaptureFixture[str]) -> None:
    assert gc(capsys, "--delete") == ([], "0 artifacts, 0.0 MB deleted")
    assert all(study.stored(name) for name in STAGES)


def test_what_no_run_needs_is_listed_and_goes_on_request_only(
    study: View, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    gone = old(tmp_path, megabytes=2.5)
    left = study.home / "store" / "sft" / f".{'0' * 16}.building"
    unrecorded = study.home / "store" / "sft" / ("1" * 16)
    for folder in (left, unrecorded):
        folder.mkdir()
        (folder / "half.safetensors").write_bytes(b"x" * 1_500_000)
    places = [place(gone), f"store/sft/{left.name}", f"store/sft/{unrecorded.name}"]

    found, last = gc(capsys)
    assert sorted(found) == sorted(places)
    assert last == "3 artifacts, 5.5 MB would go; `alignflow gc --delete` deletes them"
    assert all(folder.is_dir() for folder in (gone.folder, left, unrecorded))

    found, last = gc(capsys, "--delete")
    assert sorted(found) == sorted(places)
    assert last == "3 artifacts, 5.5 MB deleted"
    assert not any(folder.exists() for folder in (gone.folder, left, unrecorded))
    assert all(study.stored(name) for name in STAGES)
    assert gc(capsys) == ([], "0 artifacts, 0.0 MB would go; `alignflow gc --delete` deletes them")


def test_what_a_kept_artifact_was_made_of_is_kept_too(study: View, capsys: pytest.CaptureFixture[str]) -> None:
    """Only the trained model is remembered; its record leads to the pairs, and theirs to the responses."""
    path = study.home / "studies" / "small" / "last.json"
    last = json.loads(path.read_text())
    path.write_text(json.dumps({"sft": last["sft"]}))
    assert gc(capsys)[0] == []
    path.write_text(json.dumps({"pairs": last["pairs"]}))
    sft = study.stored("sft")
    assert sft is not None
    assert gc(capsys)[0] == [place(sft)]


def test_another_study_keeps_its_own(study: View, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    other = handmade.view(tmp_path, handmade.STUDY.replace("seed: 3", "seed: 2").replace("small", "twin"))
    kept = handmade.put(other, "rolls", {"made.jsonl": ""})
    assert gc(capsys)[0] == [place(kept)]
    handmade.end(other)
    assert gc(capsys)[0] == []


def test_a_stage_that_left_the_study_is_not_kept_after_the_next_run(
    study: View, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    line = "  sft: {do: sft, from: base, data: pairs}\n"
    shorter = handmade.view(tmp_path, handmade.STUDY.replace(line, "").replace("base, sft, bon", "base, bon"))
    assert gc(capsys)[0] == []
    handmade.end(shorter)
    sft = study.stored("sft")
    assert sft is not None
    assert gc(capsys)[0] == [place(sft)]


def test_converted_models_stay_and_half_a_conversion_goes(study: View, capsys: pytest.CaptureFixture[str]) -> None:
    model = handmade.put(study, "base", {"config.json": "{}"})
    half = study.home / "store" / "model" / f".{'2' * 16}.building"
    half.mkdir()
    assert gc(capsys, "--delete")[0] == [f"store/model/{half.name}"]
    assert model.folder.exists()
    assert not half.exists()


def test_what_a_process_builds_right_now_is_left_alone(
    study: View, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """A forced stage is built beside the artifact that it will replace; both belong to the holder of the lock."""
    gone = old(tmp_path)
    half = gone.folder.parent / f".{gone.folder.name}.building"
    half.mkdir()
    with locked(study.home, gone.record["fingerprint"]):
        assert gc(capsys, "--delete")[0] == []
        assert half.exists()
    assert gc(capsys, "--delete")[0] == [f"store/sample/{half.name}", place(gone)]


def test_links_to_what_went_go_with_it_and_the_others_stay(
    study: View, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    links = study.home / "studies" / "small"
    gone = old(tmp_path)
    (links / "former").symlink_to(gone.folder)
    (study.home / "studies" / "stray").write_text("a file among the studies")
    gc(capsys)
    assert (links / "former").is_symlink()
    gc(capsys, "--delete")
    assert not (links / "former").is_symlink()
    assert {path.name for path in links.iterdir() if path.is_symlink()} == set(STAGES)
    assert all((links / name / "record.json").exists() for name in STAGES)
