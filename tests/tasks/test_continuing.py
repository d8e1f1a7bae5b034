"""`since: last_run`: what the next run goes on from, what a plan says of it, and what does not move it."""

from __future__ import annotations

import json
from pathlib import Path

import handmade
import pytest
from command import told

from flows.past_runs import past_run
from flows.replaying import _earlier
from registry.artifacts import Artifact
from registry.store import Stored, building, folder_of, publish
from specs.study import Study
from tasks.continuing import complete
from tasks.recorded import snapshot, study_of
from tasks.registering import content
from tasks.versions import Version
from tasks.view import View

STUDY = """\
version: 1
name: nightly
seed: 3
models:
  base: {{source: smollm2-135m-instruct, precision: fp32}}
data:
  prompts: {{source: ./prompts.jsonl, format: prompt}}
rewards:
  gold: {{kind: length}}
stages:
  raft: {{do: raft, from: base, prompts: prompts, reward: gold, {fields}}}
  after: {{do: sample, from: {after}, prompts: prompts}}
"""
FIELDS = "since: last_run"


def view(folder: Path, fields: str = FIELDS, after: str = "raft") -> View:
    if not (folder / "prompts.jsonl").exists():
        (folder / "prompts.jsonl").write_text('{"prompt": "Why?"}\n')
    return handmade.view(folder, STUDY.format(fields=fields, after=after))


def ran(study: View, *names: str) -> dict[str, Stored]:
    """Publishes stages as the task does that builds them."""
    stored = {}
    for name in names or study.planned:
        work, artifact = study.work(name), study.artifact(name)
        inputs = [
            {"slot": slot, "kind": a.entry.kind_name, "fingerprint": a.fingerprint}
            for slot, some in artifact.inputs.items()
            for a in some
        ]
        record = {
            "payload": work.payload,
            "inputs": inputs,
            "study": snapshot(study, name),
            "provenance": handmade.PROVENANCE,
        }
        with building(study.home, work.kind, work.fingerprint) as out:
            stored[name] = publish(study.home, work.kind, work.fingerprint, out, record)
    return stored


def night(study: View) -> View:
    """A run that failed nowhere."""
    ran(study)
    handmade.end(study)
    complete(study.study, study.home, study.nodes)
    return study


def start(study: View, name: str = "raft") -> Artifact:
    return study.artifact(name).start


def prints(study: View) -> dict[str, str]:
    return {name: study.nodes[name].fingerprint for name in study.planned}


@pytest.mark.usefixtures("home")
class TestANightlyStudy:
    def test_the_first_run_is_what_it_would_be_without(self, tmp_path: Path) -> None:
        assert prints(view(tmp_path)) == prints(view(tmp_path, "samples: 8"))
        assert start(view(tmp_path)).name == "base"

    def test_the_run_after_a_completed_one_goes_on_from_what_that_made(self, tmp_path: Path) -> None:
        first = night(view(tmp_path))
        second = view(tmp_path)
        assert [p.state for p in second.planned.values()] == ["run", "run"]
        assert start(second).fingerprint == first.nodes["raft"].fingerprint
        assert start(second).start.name == "base"
        third = view(tmp_path) if night(second) else None
        assert third is not None and start(third).start.fingerprint == first.nodes["raft"].fingerprint

    def test_a_run_that_did_not_complete_is_gone_on_with(self, tmp_path: Path) -> None:
        night(view(tmp_path))
        killed = view(tmp_path)
        ran(killed, "raft")
        again = view(tmp_path)
        assert prints(again) == prints(killed)
        assert [p.state for p in again.planned.values()] == ["cached", "run"]

    def test_what_was_made_is_seen_until_the_next_run_completes(self, tmp_path: Path) -> None:
        first = night(view(tmp_path))
        assert _as_it_was(tmp_path) == prints(first)
        second = view(tmp_path)
        ran(second, "raft")
        assert _as_it_was(tmp_path) == prints(first)
        night(second)
        assert _as_it_was(tmp_path) == prints(second)

    def test_a_plan_names_the_model_and_show_has_what_there_is(
        self, tmp_path: Path, capsys: pytest.CaptureFixture[str]
    ) -> None:
        made = night(view(tmp_path)).nodes["raft"].fingerprint[:16]
        _, lines, _ = told(capsys, "plan", str(tmp_path / "s.yaml"))
        (line,) = (line for line in lines if " raft " in line)
        assert line.startswith("run ") and line.endswith(f"changed: since; goes on from raft {made}")
        _, lines, _ = told(capsys, "show", str(tmp_path / "s.yaml"))
        assert any(made in line for line in lines)

    def test_new_rows_leave_last_nights_model_what_it_is(self, tmp_path: Path) -> None:
        first = night(view(tmp_path))
        (tmp_path / "prompts.jsonl").write_text('{"prompt": "Why?"}\n{"prompt": "Why not?"}\n')
        assert start(view(tmp_path)).fingerprint == first.nodes["raft"].fingerprint

    def test_the_first_round_goes_on_from_the_last_ones_of_the_night_before(self, tmp_path: Path) -> None:
        fields = "rounds: 2, sweep: {samples: [2, 4]}, since: last_run"
        first = night(view(tmp_path, fields, after="'raft[samples=2]'"))
        second = view(tmp_path, fields, after="'raft[samples=2]'")
        for member in ("samples=2", "samples=4"):
            before = first.nodes[f"raft[{member}]"].fingerprint
            assert start(second, f"raft[{member},round=1]").fingerprint == before
            assert start(second, f"raft[{member}]").name == f"raft[{member},round=1]"

    def test_a_record_tells_what_it_was_whatever_ran_since(self, tmp_path: Path) -> None:
        stored = []
        for _ in range(2):
            study = view(tmp_path)
            stored.append((ran(study)["raft"], prints(study)))
            night(study)
        for kept, then in stored:
            study, folder, _ = study_of(kept)
            assert prints(View.of(study, view(tmp_path).home, folder, offline=True)) == then

    def test_what_is_gone_on_from_is_not_collected(self, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
        night(night(view(tmp_path)) and view(tmp_path))
        killed = view(tmp_path)
        ran(killed)
        handmade.end(killed)  # a night that is not over yet: its own stages are the last of the study
        assert [line for line in told(capsys, "gc")[1] if "store/raft" in line] == []

    def test_a_model_that_is_gone_is_told_where_it_is_asked_for(
        self, tmp_path: Path, capsys: pytest.CaptureFixture[str]
    ) -> None:
        first = night(view(tmp_path))
        stored = first.stored("raft")
        assert stored is not None
        (stored.folder / "record.json").unlink()
        status, _, err = told(capsys, "check", str(tmp_path / "s.yaml"))
        assert status == 2
        assert f"s.yaml:11:71  stages.raft.since  the model {stored.folder.name} that it goes on from is gone" in err[0]


def _as_it_was(folder: Path) -> dict[str, str]:
    now = view(folder)
    return prints(View.of(now.study, now.home, folder, offline=True, as_it_was=True))


def test_a_version_in_the_registry_holds_the_models_of_earlier_nights(tmp_path: Path, home: Path) -> None:
    first, second = (night(view(tmp_path)).nodes["raft"].fingerprint for _ in range(2))
    assert first != second
    held = content(View.of(view(tmp_path).study, home, tmp_path, offline=False, as_it_was=True), "raft")
    assert [step.fingerprint for step in held.files] == [first, second]
    steps = Version("nightly", "1", json.loads(json.dumps(held.manifest()))).steps("start")
    nothing = Study.model_construct(version=1, name="other", stages={})
    elsewhere = View(nothing, tmp_path / "other", Path(), {step.name: step for step in steps}, {}, {})
    went_on = elsewhere.artifact("start")
    assert (went_on.fingerprint, went_on.start.fingerprint) == (second, first)
    assert went_on.start.folder == folder_of(tmp_path / "other", "raft", first)
    assert went_on.start.start.entry == elsewhere.nodes["start:base"].node.entry
    assert elsewhere.missing("start") == ["start", "start:base", "start:raft:raft"]


def test_a_replay_of_a_later_night_is_given_the_models_of_the_nights_before(tmp_path: Path, home: Path) -> None:
    first = night(view(tmp_path))
    second = night(view(tmp_path))
    past = past_run("nightly", home)
    assert past.view.nodes["raft"].fingerprint == second.nodes["raft"].fingerprint
    earlier = {stored.record["fingerprint"] for stored in _earlier(past)}
    assert earlier == {first.nodes["raft"].fingerprint}
