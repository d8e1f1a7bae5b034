"""`alignflow deploy` on the servers and with the worker of `alignflow up`: what a deployment says, and what its runs do."""

from __future__ import annotations

import json
import os
import signal
from collections.abc import Iterator
from datetime import UTC, datetime
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import tiny
from command import told
from going_up import Up, ask, going_up
from servers import until

from specs.load import load
from specs.problems import SpecError
from specs.schedule import Schedule

STUDY = """\
version: 1
name: small
seed: 3
models: {base: {source: ./model, precision: fp32}}
data: {prompts: {source: ./prompts.jsonl, format: prompt}}
rewards: {gold: {kind: length}, judge: {kind: classifier, source: ./judge, precision: fp32}}
stages:
  rolls: {do: sample, from: base, prompts: prompts, samples: 2, max_new_tokens: 4}
  bon: {do: decode, method: best_of_n, from: base, reward: gold, n: 2}
  args: {do: decode, method: args, from: base, reward: judge, strength: 1.5}
"""
GOING_ON = """\
version: 1
name: going-on
seed: 3
models: {base: {source: ./model, precision: fp32}}
data: {prompts: {source: ./prompts.jsonl, format: prompt}}
rewards: {gold: {kind: length}}
stages:
  raft: {do: raft, from: base, prompts: prompts, reward: gold, since: last_run, samples: 2, max_new_tokens: 4}
"""
DECODED = """\
version: 1
name: from-two-homes
models: {base: {source: smollm2-135m-instruct}}
rewards: {gold: {kind: length}}
stages:
  bon: {do: decode, method: best_of_n, from: base, reward: gold, n: 2}
"""
NIGHTLY = ("--cron", "0 2 * * *", "--timezone", "Europe/Berlin")


def make_folder(folder: Path) -> Path:
    tiny.language_model(folder / "model")
    tiny.classifier(folder / "judge")
    tiny.write_lines(folder / "prompts.jsonl", [{"prompt": "Why?"}])
    (folder / "s.yaml").write_text(STUDY)
    (folder / "going-on.yaml").write_text(GOING_ON)
    return folder


def test_a_deployment_needs_a_server_that_stays_and_one_thing_to_do(
    tmp_path: Path, home: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("PREFECT_PROFILES_PATH", str(tmp_path / "none.toml"))
    monkeypatch.chdir(tmp_path)
    (tmp_path / "s.yaml").write_text(STUDY)
    status, _, err = told(capsys, "deploy", "s.yaml")
    assert status == 4 and "start `alignflow up`, or name one by PREFECT_API_URL" in err[0]
    for arguments in ((), ("s.yaml", "--list"), ("--list", "--remove", "small")):
        status, _, err = told(capsys, "deploy", *arguments)
        assert (status, err) == (2, ["give a study to deploy, or --list, or --remove NAME"])


@pytest.mark.parametrize(
    ("options", "line"),
    [
        (
            ("--cron", "0 0 2 * * *"),
            "--cron  not a cron expression: it has five fields (minute, hour, day of month, month, day of week), not 6",
        ),
        (
            ("--rrule", "FREQ=DAILY;COUNT=10"),
            "--rrule  not a recurrence rule: it names no time to come; without DTSTART it begins on 2020-01-01",
        ),
        (("--interval", "6"), "--interval  a duration is written `90s`, `10m`, `2h` or `1d`, not `6`"),
        (
            ("--cron", "0 2 * * *", "--rrule", "FREQ=DAILY"),
            "--cron --rrule  has `cron` and `rrule`; give one of the three",
        ),
        (("--timezone", "UTC"), "--timezone  has neither `cron`, `interval` nor `rrule`; give one of the three"),
    ],
)
def test_a_schedule_that_is_none_is_told_at_its_option(
    options: tuple[str, ...], line: str, tmp_path: Path, home: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "s.yaml").write_text(STUDY)
    status, _, err = told(capsys, "deploy", str(tmp_path / "s.yaml"), *options)
    assert (status, err[0]) == (2, line)


@pytest.fixture(scope="module")
def up(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Up]:
    with going_up(make_folder(tmp_path_factory.mktemp("deployed"))) as made:
        until(lambda: served(made))
        yield made


def served(up: Up) -> bool:
    log = up.folder / "home" / "logs" / "up" / "worker.log"
    return log.exists() and "started!" in log.read_text()


def deploy(up: Up, *arguments: str) -> list[str]:
    done = up.run("deploy", *arguments)
    assert done.returncode == 0, done.stderr
    return done.stdout.splitlines()


def due(up: Up) -> list[str]:
    """When the server will start runs."""
    which = {"flow_runs": {"state": {"type": {"any_": ["SCHEDULED"]}}}, "sort": "EXPECTED_START_TIME_ASC"}
    return [run["expected_start_time"] for run in ask(f"{up.api}/flow_runs/filter", which)]


@pytest.mark.slow
@pytest.mark.timeout(400)
class TestOnServers:
    def test_it_is_made_switched_off_of_the_validated_study(self, up: Up) -> None:
        lines = deploy(up, "s.yaml", *NIGHTLY)
        assert lines[:2] == ["align/small: deployed", "schedule: cron 0 2 * * *, Europe/Berlin (off)"]
        assert not any("no worker" in line for line in lines)
        made = up.deployment("small")
        assert made["entrypoint"] == "flows.align.align"
        assert made["concurrency_options"]["collision_strategy"] == "CANCEL_NEW"
        assert made["global_concurrency_limit"]["limit"] == 1
        assert made["parameters"]["study"]["data"]["prompts"]["source"] == str(up.folder / "prompts.jsonl")
        assert due(up) == []

    def test_made_anew_it_says_what_changed_and_stays_switched_as_it_was(self, up: Up) -> None:
        assert deploy(up, "s.yaml", *NIGHTLY)[0] == "align/small: as it was"
        changed = deploy(up, "s.yaml", *NIGHTLY, "--active", "--set", "seed=4", "--set", "stages.rolls.samples=3")
        assert changed[:4] == [
            "align/small: changed",
            "  seed: 3 -> 4",
            "  stages.rolls.samples: 2 -> 3",
            "  schedule: cron 0 2 * * *, Europe/Berlin (off) -> cron 0 2 * * *, Europe/Berlin (on)",
        ]
        until(lambda: due(up), 30)
        assert all("T01:00:00" in time or "T00:00:00" in time for time in due(up))  # UTC, in winter and in summer
        back = deploy(up, "s.yaml", *NIGHTLY)
        assert "Europe/Berlin (on)" in back[3] and not any("->" in line and "schedule" in line for line in back)

    def test_the_server_refuses_what_does_not_fit_the_form(self, up: Up) -> None:
        status, said = up.start("small", seed="soon")
        assert status == 409 and "'soon' is not of type 'integer'" in said

    def test_what_only_the_language_knows_is_refused_before_the_first_stage_all_at_once(self, up: Up) -> None:
        parameters = up.deployment("small")["parameters"]["study"]
        data = {"prompts": parameters["data"]["prompts"] | {"source": "/nowhere.jsonl"}}
        models = {"base": parameters["models"]["base"] | {"source": "/nowhere"}}
        state = up.ended(up.start("small", data=data, models=models))
        assert state["type"] == "FAILED"
        assert "models.base.source" in state["message"] and "data.prompts.source" in state["message"]
        rolls = parameters["stages"] | {"rolls": parameters["stages"]["rolls"] | {"from": "nobody"}}
        state = up.ended(up.start("small", stages=rolls))
        assert state["type"] == "FAILED" and "`nobody` is not defined" in state["message"]
        assert not list((up.folder / "home" / "store").glob("*/*"))

    def test_a_change_in_the_form_takes_effect(self, up: Up) -> None:
        run = up.start("small", seed=9)
        assert up.ended(run)["type"] == "COMPLETED"
        payload = record(up, "rolls")["payload"]["spec"]
        assert (payload["seed"], payload["samples"]) == (9, 2)
        assert record(up, "args")["payload"]["spec"]["strength"] == 1.5
        stages = up.deployment("small")["parameters"]["study"]["stages"]
        stages["args"] |= {"strength": 4.0}
        run = up.start("small", seed=9, stages=stages)
        assert up.ended(run)["type"] == "COMPLETED"
        assert up.stages(run) == {"rolls": "Cached", "bon": "Cached", "args": "Completed"}
        assert record(up, "args")["payload"]["spec"]["strength"] == 4.0

    def test_its_schedule_runs_it_and_finds_what_is_stored(self, up: Up) -> None:
        deploy(up, "s.yaml", "--interval", "15s", "--active")
        until(lambda: len(by_schedule(up)) >= 2, 240)
        lines = deploy(up, "s.yaml")
        assert any(line.startswith("  schedule: every 15s, UTC (on) -> none") for line in lines)
        first, second = by_schedule(up)[:2]
        assert up.stages(first)["rolls"] == "Completed"
        assert set(up.stages(second).values()) == {"Cached"}

    def test_new_rows_are_noticed_and_build_anew_what_depends_on_them_alone(self, up: Up) -> None:
        until(lambda: not due(up) and not up.marked_open(), 120)  # what the schedule began would come first
        tiny.write_lines(up.folder / "prompts.jsonl", [{"prompt": "Why?"}, {"prompt": "Why not?"}])
        run = up.start("small")
        assert up.ended(run)["type"] == "COMPLETED"
        assert up.stages(run) == {"rolls": "Completed", "bon": "Cached", "args": "Cached"}

    def test_one_run_makes_up_for_all_that_were_due_while_there_was_no_worker(self, up: Up) -> None:
        worker = up.parts["worker"]
        os.kill(worker, signal.SIGSTOP)
        try:
            deploy(up, "s.yaml", "--interval", "15s", "--active")
            until(lambda: len(overdue(up)) >= 3, 120)
            missed = overdue(up)
        finally:
            os.kill(worker, signal.SIGCONT)
        until(lambda: {up.state(run)["type"] for run in missed} <= {"COMPLETED", "CANCELLED"}, 120)
        deploy(up, "s.yaml", "--rrule", "FREQ=WEEKLY;BYDAY=MO")
        states = [up.state(run) for run in missed]
        assert [state["type"] for state in states].count("COMPLETED") == 1
        told = {state["message"] for state in states if state["type"] == "CANCELLED"}
        # Those that the worker had taken up too when the first began do not run beside it.
        assert "small, which is at work, makes up for it" in told
        assert told <= {"small, which is at work, makes up for it", "Deployment concurrency limit reached."}

    def test_a_rule_of_recurrence_says_when_it_runs(self, up: Up) -> None:
        lines = deploy(up, "s.yaml", "--rrule", "FREQ=WEEKLY;BYDAY=MO;BYHOUR=2;BYMINUTE=0", "--active")
        assert any("FREQ=WEEKLY;BYDAY=MO" in line and "(on)" in line for line in lines)
        until(lambda: due(up), 30)
        times = [datetime.fromisoformat(time) for time in due(up)]
        assert {(time.weekday(), time.hour, time.minute) for time in times} == {(0, 2, 0)}
        deploy(up, "s.yaml")
        until(lambda: not due(up), 30)

    def test_night_after_night_a_study_goes_on_from_the_model_of_the_night_before(self, up: Up) -> None:
        before = set(by_schedule(up))
        deploy(up, "going-on.yaml", "--interval", "15s", "--active")
        until(lambda: len(set(by_schedule(up)) - before) >= 2, 240)
        deploy(up, "going-on.yaml")
        nights = [run for run in by_schedule(up) if run not in before][:2]
        assert [up.stages(run)["raft"] for run in nights] == ["Completed", "Completed"]
        stored = up.folder / "home" / "store" / "raft"
        records = [json.loads(path.read_text()) for path in sorted(stored.glob("*/record.json"), key=written)]
        went_on = [[each["fingerprint"] for each in one["inputs"] if each["kind"] == "raft"] for one in records]
        assert went_on[:2] == [[], [records[0]["fingerprint"]]]

    def test_it_is_listed_and_taken_away(self, up: Up) -> None:
        until(lambda: not due(up) and not up.marked_open(), 120)  # a run that waits for the one before it is its next
        lines = deploy(up, "--list")
        assert [line.startswith(("going-on  none, last ", "small  none, last completed ")) for line in lines] == [
            True,
            True,
        ]
        refused = up.run("deploy", "--remove", "smal")
        assert refused.returncode == 2 and "did you mean `small`?" in refused.stderr
        assert deploy(up, "--remove", "small") == ["align/small: removed; what its runs made stays"]
        deploy(up, "--remove", "going-on")
        assert deploy(up, "--list") == ["no study is deployed"]


def by_schedule(up: Up) -> list[str]:
    """The runs that the schedule started and that came to their end, first to last."""
    which = {"flow_runs": {"state": {"type": {"any_": ["COMPLETED"]}}}, "sort": "EXPECTED_START_TIME_ASC"}
    return [run["id"] for run in ask(f"{up.api}/flow_runs/filter", which) if run["auto_scheduled"]]


def overdue(up: Up) -> list[str]:
    now = datetime.now(UTC)
    which = {
        "flow_runs": {"state": {"type": {"any_": ["SCHEDULED"]}}, "expected_start_time": {"before_": now.isoformat()}}
    }
    return [run["id"] for run in ask(f"{up.api}/flow_runs/filter", which)]


def written(path: Path) -> float:
    return path.stat().st_mtime


def record(up: Up, stage: str) -> dict[str, Any]:
    found: dict[str, Any] = json.loads((up.folder / "home" / "studies" / "small" / stage / "record.json").read_text())
    return found


@pytest.mark.parametrize(("written", "on"), [({}, True), ({"active": False}, False), ({"active": True}, True)])
def test_a_schedule_that_was_on_stays_on_unless_the_study_says_otherwise(written: dict[str, bool], on: bool) -> None:
    from flows.deploying import _schedules

    schedule = Schedule(cron="0 2 * * *", **written)
    before = SimpleNamespace(schedules=[SimpleNamespace(schedule=None, active=True)])
    before.schedules[0].schedule = _schedules(schedule, None, active=True)[0].schedule
    assert [each.active for each in _schedules(schedule, before, active=False)] == [on]  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("before", "now"),
    [
        ("DTSTART:29990101T000000\nRRULE:FREQ=DAILY;COUNT=3", "DTSTART:29990102T000000\nRRULE:FREQ=DAILY;COUNT=3"),
        ("RRULE:FREQ=DAILY\nEXDATE:29990101T000000", "RRULE:FREQ=WEEKLY\nEXDATE:29990101T000000"),
    ],
)
def test_a_rule_of_several_lines_that_is_other_in_one_of_them_is_another(before: str, now: str) -> None:
    from flows.deploying import _schedules, _state

    deployed = SimpleNamespace(schedules=_schedules(Schedule(rrule=before), None, active=True))
    (wanted,) = _schedules(Schedule(rrule=now), deployed, active=True)  # type: ignore[arg-type]
    assert now in wanted.schedule.rrule
    assert _state([wanted]) != _state(deployed.schedules)


@pytest.mark.parametrize("rule", ["FREQ=DAILY", "FREQ=MINUTELY;INTERVAL=7"])
def test_a_rule_without_a_beginning_is_told_as_it_was_written(rule: str) -> None:
    from flows.deploying import _schedules, _state

    assert _state(_schedules(Schedule(rrule=rule), None, active=True)) == f"rrule {rule}, UTC (on)"


@pytest.fixture
def deployable(tmp_path: Path, prefect_server: str, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A study that a real server takes."""
    from prefect.settings import PREFECT_API_URL, temporary_settings

    monkeypatch.setenv("PREFECT_API_URL", prefect_server)
    (tmp_path / "s.yaml").write_text(DECODED)
    with temporary_settings({PREFECT_API_URL: prefect_server}):
        yield tmp_path / "s.yaml"


def test_made_anew_from_another_home_it_says_so(
    deployable: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from flows.deploying import deploy

    def told(home: str) -> list[str]:
        monkeypatch.setenv("ALIGNFLOW_HOME", str(tmp_path / home))
        return deploy(load(deployable), None, active=False, offline=False).splitlines()

    assert told("one")[0] == "align/from-two-homes: deployed"
    assert told("two")[:2] == ["align/from-two-homes: changed", f"  home: {tmp_path}/one -> {tmp_path}/two"]
    assert told("two")[0] == "align/from-two-homes: as it was"


def test_what_only_prefect_has_against_a_schedule_is_told_where_it_was_written(deployable: Path, home: Path) -> None:
    """Its rules know fewer time zones than its cron expressions."""
    from flows.deploying import deploy

    text, rule = deployable.read_text(), Schedule(rrule="FREQ=DAILY", timezone="Factory")
    refusal = 'Prefect refuses it: Invalid timezone: "Factory"'
    for written, line in (
        ("", f"--timezone  {refusal}"),
        ("schedule: {rrule: FREQ=DAILY, timezone: Factory}\n", f"{deployable}:7:41  schedule.timezone  {refusal}"),
    ):
        deployable.write_text(text + written)
        with pytest.raises(SpecError) as refused:
            deploy(load(deployable), rule, active=False, offline=False)
        assert str(refused.value) == line
