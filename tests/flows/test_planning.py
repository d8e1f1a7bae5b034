"""What a plan says a study will take of this machine: by hand where that can be done, and against real runs."""

from __future__ import annotations

import dataclasses
import json
import os
from pathlib import Path
from typing import Any

import pytest
import tiny
from command import alignflow, told

from flows import planning, running
from flows.planning import Outlook, duration, size
from registry.machine import Machine
from specs.load import load
from specs.problems import UnfitError
from tasks.view import View

STUDY = """\
version: 1
name: small
models: {base: {source: ./model, precision: fp32}}
data:
  prompts: {source: ./prompts.jsonl, format: prompt, max_dropped: 20%}
  pairs: {source: ./pairs.jsonl, format: preference, max_dropped: 70%}
rewards: {gold: {kind: length}}
stages:
  rolls: {do: sample, from: base, prompts: prompts, samples: 4, max_new_tokens: 16}
  tuned: {do: sft, from: base, data: pairs, max_length: 24}
execution: {threads: 1}
"""


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    tiny.language_model(tmp_path / "model")
    tiny.write_lines(tmp_path / "prompts.jsonl", [{"prompt": f"Number {i}?"} for i in range(8)] + [{"question": "?"}])
    tiny.write_lines(tmp_path / "pairs.jsonl", tiny.TEN)
    (tmp_path / "s.yaml").write_text(STUDY)
    monkeypatch.chdir(tmp_path)
    return tmp_path


def outlook(folder: Path, study: str = STUDY) -> Outlook:
    (folder / "s.yaml").write_text(study)
    return Outlook(View.of(load(folder / "s.yaml").study, folder / ".alignflow", folder, offline=True))


def on(seen: Outlook, **machine: Any) -> Outlook:
    """The same on another machine."""
    seen.machine = dataclasses.replace(seen.machine, **machine)
    return seen


def test_a_plan_ends_with_time_memory_and_disk_and_says_where_the_time_is_from(folder: Path, capsys) -> None:
    status, out, _ = told(capsys, "plan", "s.yaml")
    assert status == 0
    assert [line.split()[0] for line in out[:3]] == ["state", "run", "run"]
    assert out[3] == ""
    assert [line.split()[0] for line in out[4:]] == ["time", "memory", "disk", "rows", "rows"]
    assert "by this processor's speed, so perhaps half or twice that" in out[4]


def test_rows_that_will_not_be_used_are_counted_each_reason_a_line(folder: Path) -> None:
    """Nine prompts of which one has none; of ten pairs, `yes` n times and an end behind 12
    tokens, those of more than 24."""
    assert outlook(folder).lost() == [
        "data.prompts: 1 of 9 rows dropped: `prompt` is missing: 1 (row 9)",
        "tuned: 7 of 10 rows are longer than `max_length: 24` and dropped",
    ]


def test_a_stage_that_will_refuse_its_rows_is_told_of(folder: Path) -> None:
    lost = outlook(folder, STUDY.replace("max_dropped: 70%", "max_dropped: 60%")).lost()
    assert lost[1] == (
        "tuned: 7 of 10 rows are longer than `max_length: 24` and dropped: the stage will refuse them, for 60% may be"
    )


def test_what_is_stored_takes_nothing_more(folder: Path) -> None:
    seen = outlook(folder, STUDY.replace("stages:\n", "stages:\n  greedy: {do: decode, method: greedy, from: base}\n"))
    assert seen.expected.keys() == {"greedy", "rolls", "tuned"}


def test_twice_the_prompts_are_twice_the_work(folder: Path) -> None:
    before = outlook(folder).expected["rolls"]
    tiny.write_lines(folder / "prompts.jsonl", [{"prompt": f"Number {i}?"} for i in range(16)] + [{"question": "?"}])
    after = outlook(folder).expected["rolls"]
    assert after.disk_bytes == pytest.approx(2 * before.disk_bytes, rel=0.05)


def test_of_a_model_that_is_not_here_nothing_is_said_but_why(
    folder: Path, capsys, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("HF_HUB_OFFLINE")
    (folder / "s.yaml").write_text(STUDY.replace("{source: ./model,", f"{{source: some/model, revision: {'a' * 40},"))
    status, out, _ = told(capsys, "plan", "s.yaml")
    assert status == 0
    assert "unknown rolls: the shape of `base` is not known until it is on this machine" in out


def test_what_does_not_fit_the_machine_is_said_and_left_to_the_person(folder: Path) -> None:
    seen = on(outlook(folder), memory_available=1_000_000_000, disk_free=1000)
    memory, disk = "needs about 1.1 GB of memory, and 1.0 GB of", "of disk, and 1.0 kB are free"
    lines = list(seen.unfit())
    assert [memory in lines[0], memory in lines[1], disk in lines[2]] == [True] * 3
    seen.require()
    assert [line for line in seen.lines() if line.startswith("does not fit this machine: ")] != []


def test_a_stage_whose_weights_alone_are_more_than_all_of_the_memory_is_refused(folder: Path) -> None:
    seen = on(outlook(folder), memory=50_000)
    with pytest.raises(
        UnfitError, match=r"`rolls` cannot run here: the weights of its models alone are .* take a smaller"
    ):
        seen.require()


def test_a_run_refuses_it_before_anything_starts(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    here = Machine(50_000, 50_000, 10**12, (), ())
    monkeypatch.setattr(planning, "machine", lambda home, gpus: here)
    monkeypatch.setattr(running.server, "start_temporary", None)
    with pytest.raises(UnfitError, match="cannot run here"):
        running.run(load(folder / "s.yaml"), offline=True, force=[], as_json=False, quiet=True)


def test_a_gpu_is_asked_for_its_own_memory(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    here = Machine(10**12, 10**12, 10**12, (16 * 10**9,), (500_000_000,))
    monkeypatch.setattr(planning, "machine", lambda home, gpus: here)
    seen = outlook(folder, STUDY.replace("{threads: 1}", "{gpus: 1}"))
    lines = [line for line in seen.unfit() if "execution.gpus" not in line]  # which a machine without any says besides
    assert lines and all("of a GPU's memory, and 500 MB are free" in line for line in lines)
    assert [time.seconds for time in seen.times.values()] == [None, None]  # nothing ever ran on it


RECIPES = sorted((Path(__file__).parents[2] / "specs" / "recipes").glob("*.yaml"))
CATALOGUED = [recipe for recipe in RECIPES if "ALIGNFLOW_DATA" not in recipe.read_text()]


@pytest.mark.parametrize("recipe", CATALOGUED, ids=lambda path: path.stem)
def test_of_every_recipe_all_stages_are_reckoned(recipe: Path, tmp_path: Path) -> None:
    """Training holds more than sampling does, sampling more than the model, and what trains leaves an adapter."""
    seen = Outlook(View.of(load(recipe).study, tmp_path, recipe.parent, offline=False))
    assert [e.unknown for e in seen.expected.values()] == [""] * len(seen.expected)
    model = 134_515_008 * 2  # bytes in bf16, which some processors have
    for name, planned in seen.view.planned.items():
        expected, kind = seen.expected[name], planned.step.kind
        seconds = seen.times[name].seconds
        assert seconds is not None
        assert 0 < seconds < 20_000, name
        if kind in ("sample", "calibrate", "evaluate"):
            most = 5e9 if kind == "evaluate" else 4e9  # of many policies
            assert 0.5e9 + model < expected.host_bytes < most, name
        elif hasattr(planned.step.node.entry, "lora"):
            assert 1e9 + model < expected.host_bytes < 20e9, name
            assert 4 * 16 * 305_280 < expected.disk_bytes < 200e6, name


@pytest.mark.parametrize(
    ("amount", "text"), [(0, "0 B"), (999, "999 B"), (1500, "1.5 kB"), (538e6, "538 MB"), (2.46e9, "2.5 GB")]
)
def test_sizes_are_told_to_two_or_three_digits(amount: float, text: str) -> None:
    assert size(amount) == text


@pytest.mark.parametrize(
    ("seconds", "text"),
    [(0.2, "<1 s"), (0.6, "1 s"), (59, "59 s"), (59.9, "1 min"), (3599, "1 h 00 min"), (7800, "2 h 10 min")],
)
def test_durations_are_told_as_a_person_would(seconds: float, text: str) -> None:
    assert duration(seconds) == text


@pytest.mark.slow
def test_a_real_run_takes_what_was_told_and_the_next_plan_learns_from_it(folder: Path) -> None:
    home = folder / ".alignflow"
    environment = {"OMP_NUM_THREADS": "1", "PREFECT_HOME": os.environ["PREFECT_HOME"]}
    before = json.loads(alignflow(folder, "plan", "s.yaml", "--json", **environment).stdout)
    assert alignflow(folder, "run", "s.yaml", **environment).returncode == 0
    for stage in before["stages"]:
        path = home / "store" / stage["kind"] / stage["fingerprint"][:16] / "record.json"
        record = json.loads(path.read_bytes())
        run = record["provenance"]
        expected = stage["expected"]
        assert expected["host_bytes"] == pytest.approx(run["spent"]["host_bytes"], rel=0.35)
        size = sum(file["bytes"] for file in record["files"].values())
        assert expected["disk_bytes"] == pytest.approx(size, rel=0.35)
        assert run["foreseen"]["host_bytes"] == pytest.approx(expected["host_bytes"])
        assert run["spent"]["processor_seconds"] > 0
        assert expected["runs"] == 0
    forced = ["plan", "s.yaml", "--json", "--force", "rolls", "--force", "tuned"]
    after = json.loads(alignflow(folder, *forced, **environment).stdout)
    for stage in after["stages"]:
        path = home / "store" / stage["kind"] / stage["fingerprint"][:16] / "record.json"
        seconds = json.loads(path.read_bytes())["provenance"]["seconds"]
        assert stage["expected"]["runs"] == 1
        assert stage["expected"]["seconds"] == pytest.approx(seconds, rel=0.1, abs=0.1)
    assert json.loads(alignflow(folder, "plan", "s.yaml", "--json").stdout)["expected"]["seconds"] == 0
