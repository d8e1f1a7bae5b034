"""A run as an RO-Crate: everything that is named is described, every file is there with its digest, and what is not is named."""

from __future__ import annotations

import hashlib
import json
import zipfile
from pathlib import Path
from typing import Any
from urllib.parse import unquote

import evaluated
import handmade
import pytest
from command import told

from flows.crate import export
from specs.load import load
from specs.problems import UserError
from tasks.view import View


@pytest.fixture
def study(tmp_path: Path, home: Path, monkeypatch: pytest.MonkeyPatch) -> View:
    """A study that ran to its end."""
    monkeypatch.chdir(tmp_path)
    made = evaluated.and_trained(tmp_path)
    started = {
        "started": "2026-11-21T10:11:00.5+00:00",
        "machine": {"processor": "Abacus", "variables": {"OMP_NUM_THREADS": "2"}},
    }
    for name, files in (("rolls", {"responses.jsonl": "x"}), ("pairs", {"pairs.jsonl": "y"}),
                        ("bon[n=2]", {"rule.json": "{}"}), ("bon[n=4]", {"rule.json": "{}"})):  # fmt: skip
        handmade.put(made, name, files, **started)
    training = handmade.lines({"step": 1, "loss": 2.5})
    handmade.put(made, "sft", {"adapter.safetensors": "weights", "training.jsonl": training}, {"rows": 8.0}, **started)
    handmade.end(made)
    return made


@pytest.fixture
def crate(study: View, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> Path:
    assert told(capsys, "export", "small", "crate") == (0, ["crate"], [])
    return tmp_path / "crate"


def entities(crate: Path) -> dict[str, dict[str, Any]]:
    graph = json.loads((crate / "ro-crate-metadata.json").read_text())["@graph"]
    found = {entity["@id"]: entity for entity in graph}
    assert len(found) == len(graph)
    return found


def ids(value: Any) -> list[str]:
    return [one["@id"] for one in (value if isinstance(value, list) else [value])]


def test_everything_that_is_referred_to_is_described(crate: Path) -> None:
    found = entities(crate)

    def named(value: Any) -> list[str]:
        if isinstance(value, dict):
            return [value["@id"]] if set(value) == {"@id"} else [i for v in value.values() for i in named(v)]
        return [i for v in value for i in named(v)] if isinstance(value, list) else []

    outside = {i for e in found.values() for i in named(list(e.values()))} - set(found)
    assert outside == {"https://w3id.org/ro/crate/1.1"}
    root = found["./"]
    assert {"name", "description", "datePublished", "license", "mainEntity"} <= set(root)
    assert found[root["mainEntity"]["@id"]]["@type"][2:] == ["ComputationalWorkflow", "HowTo"]


def test_its_files_are_there_with_size_and_digest_and_nothing_else_is(crate: Path) -> None:
    files = {i: e for i, e in entities(crate).items() if "File" in e["@type"]}
    for name, entity in files.items():
        content = (crate / unquote(name)).read_bytes()
        assert (entity["contentSize"], entity["sha256"]) == (str(len(content)), hashlib.sha256(content).hexdigest())
    there = {str(p.relative_to(crate)) for p in crate.rglob("*") if p.is_file()}
    assert there == {*map(unquote, files), "ro-crate-metadata.json"}
    assert {"study.yaml", "run.json", "README.md", "stages/bon[n=4]/record.json", "report/report.html"} <= there


def test_a_stage_is_an_action_with_its_inputs_outputs_times_and_software(crate: Path, study: View) -> None:
    found = entities(crate)
    action = found["#build-sft"]
    assert ids(action["object"]) == ["#given-base", "stages/pairs/pairs.jsonl"]
    assert ids(action["result"]) == ["#weights-stages%2Fsft%2Fadapter.safetensors", "stages/sft/training.jsonl"]
    assert (action["startTime"], action["endTime"]) == ("2026-11-21T10:11:00+00:00", "2026-11-21T10:11:12+00:00")
    assert action["identifier"] == study.nodes["sft"].fingerprint
    assert action["description"] == "12.34 s with 2 threads on Abacus"
    assert found[action["instrument"]["@id"]]["name"] == "AlignFlow's stage sft"
    control = found["#control-sft"]
    assert found[control["instrument"]["@id"]]["workExample"] == action["instrument"]
    assert "#control-sft" in ids(found["#organised"]["object"])


def test_what_was_given_is_named_by_what_pins_it(crate: Path) -> None:
    base = entities(crate)["#given-base"]
    assert base["sha256"].startswith("b179c9523d0e6a0f")
    assert base["description"].startswith("source smollm2-135m-instruct, ")


def test_the_study_in_it_is_the_study_that_ran(crate: Path, study: View) -> None:
    kept = load(crate / "study.yaml").study  # its sweep written out
    again = View.of(kept, study.home, crate, offline=True)
    assert {n: s.fingerprint for n, s in again.nodes.items()} == {n: s.fingerprint for n, s in study.nodes.items()}
    assert list(again.study.stages) == list(study.study.stages)


def test_weights_are_in_it_where_they_are_asked_for_and_a_zip_is_the_same(
    study: View, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert told(capsys, "export", "small", "c.zip", "--weights")[0] == 0
    with zipfile.ZipFile(tmp_path / "c.zip") as archive:
        names = archive.namelist()
        assert archive.read("stages/sft/adapter.safetensors") == b"weights"
    assert {"ro-crate-metadata.json", "report/report.html"} <= set(names)


def test_nothing_is_written_over_and_nothing_half_is_exported(
    study: View, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "c.zip").write_text("mine")
    assert told(capsys, "export", "small", "c.zip") == (2, [], ["c.zip is there already; name another, or remove it"])
    stored = study.stored("pairs")
    assert stored is not None
    (stored.folder / "record.json").unlink()
    status, _, err = told(capsys, "export", "small", "crate")
    assert (status, (tmp_path / "crate").exists()) == (2, False)
    assert err == ["`pairs` of run 0123abcd is not stored: it was not built, or `gc` took it; run the study again"]


def test_a_crate_into_no_folder_is_refused_and_one_that_was_interrupted_is_written_anew(
    study: View, tmp_path: Path
) -> None:
    with pytest.raises(UserError, match=r"there is no folder .*nowhere to write run\.zip into"):
        export("small", tmp_path / "nowhere" / "run.zip", weights=False)
    (tmp_path / ".run.zip.unfinished.zip").write_text("half")
    export("small", tmp_path / "run.zip", weights=False)
    assert [path.name for path in tmp_path.iterdir() if "run.zip" in path.name] == ["run.zip"]


def test_an_empty_folder_is_filled_also_the_one_that_the_person_is_in(
    study: View, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "empty").mkdir()
    monkeypatch.chdir(tmp_path / "empty")
    assert told(capsys, "export", "small", ".") == (0, ["."], [])
    assert {"ro-crate-metadata.json", "stages", "report"} <= {path.name for path in Path().iterdir()}
    assert not [path.name for path in tmp_path.iterdir() if "unfinished" in path.name]
    assert told(capsys, "export", "small", ".") == (2, [], [". is there already; name another, or remove it"])
