"""What earlier runs teach: what they took, against what was reckoned, is what the next will take."""

from __future__ import annotations

import json
import socket
from dataclasses import asdict
from pathlib import Path
from typing import Any

import pytest
import tiny

from registry.methods.footprint import Work
from registry.throughput import Speed
from specs.load import load
from tasks import experience
from tasks.experience import Experience, Time
from tasks.foreseen import FULL
from tasks.view import View

STUDY = """\
version: 1
name: small
models: {base: {source: ./model, precision: fp32}}
data: {prompts: {source: ./prompts.jsonl, format: prompt}}
stages: {rolls: {do: sample, from: base, prompts: prompts, samples: 4, max_new_tokens: 16}}
execution: {threads: 1}
"""


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    tiny.language_model(tmp_path / "model")
    tiny.write_lines(tmp_path / "prompts.jsonl", [{"prompt": f"Number {i}?"} for i in range(8)])
    (tmp_path / "s.yaml").write_text(STUDY.replace("./", f"{tmp_path}/"))
    monkeypatch.setattr(experience, "speed", lambda precision, threads: Speed(threads * 1e11, threads * 0.5e11))
    return tmp_path


def learnt(folder: Path) -> Experience:
    return Experience(View.of(load(folder / "s.yaml").study, folder / "home", folder, offline=True))


def record(folder: Path, name: str, seconds: float, kind: str = "sample", **changes: Any) -> None:
    """Writes what a run of 10 seconds' work by this processor's speed leaves, which took `seconds`."""
    ten = Work(operations=(10 - experience.NOTHING) * 1e11 / experience.AROUND)
    work = changes.pop("work", ten)
    run = {
        "host": socket.gethostname(), "device": "cpu", "threads": 1, "seconds": seconds,
        "foreseen": {"work": asdict(work), "parameters": changes.pop("parameters", 1e4),
                     "precision": changes.pop("precision", "fp32")},
    }  # fmt: skip
    metrics = {"tokens_per_response": changes.pop("tokens", 16.0)}
    payload = {"spec": {"max_new_tokens": 16}}
    path = folder / "home" / "store" / kind / name / "record.json"
    path.parent.mkdir(parents=True)
    path.write_text(json.dumps({"provenance": run | changes, "metrics": metrics, "payload": payload}))


def alone(known: Experience) -> float:
    """Seconds of the stage by the processor's speed alone."""
    found = known._alone(known._foreseen("rolls").work, "fp32", 1)
    assert found is not None
    return found


def test_without_an_earlier_run_the_time_is_by_the_speed_of_the_processor(folder: Path) -> None:
    assert learnt(folder).time("rolls") == Time(alone(learnt(folder)), 0)
    before, a_second = experience.NOTHING + experience.BEGINNING, 1e11 / experience.AROUND
    read, trained = Work(operations=a_second, loaded=1.0), Work(trained=a_second, loaded=1.0)
    assert learnt(folder)._alone(read, "fp32", 1) == pytest.approx(before + 1, rel=1e-6)
    assert learnt(folder)._alone(read, "fp32", 2) == pytest.approx(before + 0.5, rel=1e-6)
    assert learnt(folder)._alone(trained, "fp32", 1) == pytest.approx(before + experience.TRAINING_BEGINS + 2, rel=1e-6)


def test_no_processor_is_timed_for_a_study_on_gpus(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delattr(experience, "speed")
    text = (folder / "s.yaml").read_text().replace("{threads: 1}", "{gpus: 1}")
    (folder / "s.yaml").write_text(text)
    assert learnt(folder).time("rolls") == Time(None, 0)
    record(folder, "a", 30.0, device="1 GPU")
    known = learnt(folder)
    work = Work(operations=(10 - experience.NOTHING) * 1e11 / experience.AROUND)
    reckoned = known._alone(work, "fp32", 1)
    assert reckoned is not None
    expected = 30.0 / reckoned * alone(known)
    assert known.time("rolls") == Time(pytest.approx(expected), 1)


def test_where_no_processor_can_be_timed_nothing_is_told(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(experience, "speed", lambda precision, threads: None)
    record(folder, "a", 30.0)
    assert learnt(folder).time("rolls") == Time(None, 0)


def test_each_run_is_measured_by_the_speed_of_its_own_precision_and_threads(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    speeds = {("fp32", 1): 1e11, ("bf16", 4): 4e11}
    monkeypatch.setattr(experience, "speed", lambda *of: Speed(speeds[of], 1.0))
    record(folder, "a", 30.0, precision="bf16", threads=4)  # four times the speed: of work that took 10 s, 2.5
    known = learnt(folder)
    reckoned = experience.NOTHING + (10 - experience.NOTHING) / 4
    assert known.time("rolls") == Time(pytest.approx(30.0 / reckoned * alone(known)), 1)


def test_a_kind_that_took_three_times_as_long_as_reckoned_will_again(folder: Path) -> None:
    record(folder, "a", 30.0)
    with_record = learnt(folder)
    assert with_record.time("rolls") == Time(pytest.approx(3 * alone(with_record)), 1)


def test_the_middle_of_several_runs_counts(folder: Path) -> None:
    for name, seconds in (("a", 20.0), ("b", 30.0), ("c", 900.0)):
        record(folder, name, seconds)
    found = learnt(folder)
    assert found.time("rolls") == Time(pytest.approx(3 * alone(found)), 3)


def test_runs_of_models_of_the_nearest_size_alone_are_heard(folder: Path) -> None:
    for name, seconds, parameters in (("a", 20.0, 1e4), ("b", 20.0, 1.5e4), ("c", 500.0, 1e9)):
        record(folder, name, seconds, parameters=parameters)
    assert [run["seconds"] for run in learnt(folder)._runs("sample", 1e4)] == [20.0, 20.0]
    assert [run["seconds"] for run in learnt(folder)._runs("sample", 3e8)] == [500.0]


def test_runs_of_models_a_hundred_times_as_small_or_as_large_teach_nothing(folder: Path) -> None:
    for name, parameters in (("a", 1e2), ("b", 1e9)):
        record(folder, name, 500.0, parameters=parameters)
    assert learnt(folder).time("rolls").runs == 0


@pytest.mark.parametrize(
    "changes", [{"host": "elsewhere"}, {"device": "1 GPU"}, {"foreseen": {}}, {"foreseen": {"work": {"old": 1}}}]
)
def test_other_machines_other_devices_and_records_without_work_teach_nothing(folder: Path, changes: Any) -> None:
    record(folder, "a", 30.0, **changes)
    assert learnt(folder).time("rolls").runs == 0


def test_answers_are_as_long_as_they_were_before(folder: Path) -> None:
    full = learnt(folder).expected("rolls")
    record(folder, "a", 10.0, tokens=4.0)
    short = learnt(folder)
    assert short._share == 0.25
    assert short.expected("rolls").disk_bytes < full.disk_bytes


def test_what_is_recorded_is_what_the_next_plan_reads(folder: Path) -> None:
    kept = json.loads(json.dumps(learnt(folder).to_record("rolls")))
    record(folder, "a", 20.0, work=Work(**kept["work"]), parameters=kept["parameters"], tokens=16 * FULL)
    assert learnt(folder).time("rolls").seconds == pytest.approx(20.0)
