"""Studies with judges, run as a person runs them: found wanting before anything is built, shown, logged, and no key told."""

from __future__ import annotations

import importlib.util
import json
import os
import socket
from collections.abc import Iterator
from pathlib import Path

import httpx
import pytest
import tiny
from command import alignflow, planned, stored, told
from judge_endpoint import TRIAL, Endpoint, always_first, fault, longer, serving

STUDY = """\
version: 1
name: small
seed: 3
models:
  base: {source: ./model, precision: fp32}
  other: {source: ./other, precision: fp32}
data:
  prompts: {source: ./prompts.jsonl, format: prompt}
rewards:
  words: {kind: length}
judges:
  careful: {base_url: "URL", model: some-model, api_key: "${env:JUDGE_KEY}"}
stages:
  table:
    do: evaluate
    policies: [base, other]
    against: base
    prompts: prompts
    rewards: [words]
    judges: [careful]
    budget: {max_new_tokens: 8}
    resamples: 100
    expect: {other: {judge.careful: ">= 0.5"}}
"""
KEY = "sk-geheim-0123456789"


@pytest.fixture
def endpoint() -> Iterator[Endpoint]:
    with serving(longer) as made:
        yield made


@pytest.fixture
def folder(tmp_path: Path, home: Path, endpoint: Endpoint, monkeypatch: pytest.MonkeyPatch) -> Path:
    tiny.language_model(tmp_path / "model")
    tiny.language_model(tmp_path / "other", seed=1)
    tiny.write_lines(tmp_path / "prompts.jsonl", [{"prompt": f"Tell me of number {i}"} for i in range(4)])
    (tmp_path / "s.yaml").write_text(STUDY.replace("URL", endpoint.url))
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("JUDGE_KEY", KEY)
    return tmp_path


def test_check_and_plan_ask_nobody(folder: Path, endpoint: Endpoint, capsys: pytest.CaptureFixture[str]) -> None:
    assert told(capsys, "check", "s.yaml") == (0, ["s.yaml: fine"], [])
    assert planned(told(capsys, "plan", "s.yaml")[1])[0][:2] == ["run", "table"]
    assert endpoint.bodies == []


def test_an_endpoint_that_cannot_be_asked_is_exit_status_4_before_anything_starts(
    folder: Path, home: Path, endpoint: Endpoint, capsys: pytest.CaptureFixture[str]
) -> None:
    endpoint.faults = [fault(401, f"Incorrect key {KEY}")]
    assert told(capsys, "run", "s.yaml") == (
        4, [], [f"environment: judges.careful: {endpoint.url} wants another key in `api_key` (401: Incorrect key ***)"],
    )  # fmt: skip
    with socket.create_server(("127.0.0.1", 0)) as place:
        nobody = f"http://127.0.0.1:{place.getsockname()[1]}/v1"
    (folder / "s.yaml").write_text(STUDY.replace("URL", nobody))
    status, out, (line,) = told(capsys, "run", "s.yaml")
    assert (status, out) == (4, [])
    assert line.startswith(f"environment: judges.careful: nothing answers at {nobody} (")
    assert stored(home) == [] and not (home / "mlflow.db").exists()


def test_offline_forbids_a_judge_in_the_network_and_not_one_on_this_machine(
    folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert told(capsys, "check", "s.yaml", "--offline")[0] == 0
    (folder / "s.yaml").write_text(STUDY.replace("URL", "https://judge.example.org/v1"))
    message = "is in the network, which --offline forbids; a judge on this machine may be asked"
    for verb in ("check", "run"):
        status, out, (line, _) = told(capsys, verb, "s.yaml", "--offline")
        assert (status, out) == (2, [])
        assert line == f"s.yaml:12:23  judges.careful.base_url  {message}"
    (line,) = told(capsys, "plan", "s.yaml", "--offline")[1]
    assert line.startswith("blocked  table") and line.endswith(message)


def test_a_judge_that_nothing_will_ask_may_be_anywhere(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    text = STUDY.replace("URL", "https://judge.example.org/v1").replace("    judges: [careful]\n", "")
    (folder / "s.yaml").write_text(text.replace("judge.careful", "length").replace(">= 0.5", ">= 0"))
    assert told(capsys, "check", "s.yaml", "--offline")[0] == 0


def test_a_missing_package_is_told_before_anything_runs(
    folder: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    find = importlib.util.find_spec
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None if name == "openai" else find(name))
    status, _, (line, _) = told(capsys, "check", "s.yaml")
    assert status == 2
    assert line == (
        "s.yaml:12:23  judges.careful.base_url  is asked through the package openai, which is not installed; install that, or "
        "`alignflow[judge]`"
    )


def test_gc_leaves_replies_that_were_paid_for(home: Path, capsys: pytest.CaptureFixture[str]) -> None:
    from registry.verdicts import Reply, keep, known, place

    keep(place(), "asked", Reply("[[A]]", 1, 1))
    assert told(capsys, "gc", "--delete")[1] == ["0 artifacts, 0.0 MB deleted"]
    assert known(home / "verdicts.db", ["asked"])


@pytest.mark.slow
def test_a_run_with_a_judge_from_end_to_end(
    folder: Path, home: Path, endpoint: Endpoint, prefect_server: str, tmp_path: Path
) -> None:
    """A judge that always takes the first, and an expectation that its win rate of one half meets."""
    endpoint.rule = always_first
    done = alignflow(folder, "run", "s.yaml", PREFECT_API_URL=prefect_server)
    assert done.returncode == 0, done.stdout + done.stderr
    assert {headers["authorization"] for headers in endpoint.headers} == {f"Bearer {KEY}"}
    assert endpoint.trials == 2 and len(endpoint.asked) == 8
    shown = [" ".join(line.replace("│", " ").split()) for line in done.stdout.splitlines()]
    assert "table: verdicts on each policy beside base" in shown
    texts = [body["messages"][0]["content"] for body in endpoint.bodies]
    tokens = sum(len(text.split()) for text in texts if TRIAL not in text)
    row = f"other careful 0.500 [0.500, 0.500] 4 of 4 1.000 0.000 0 8 {tokens:,} in, 32 out"
    assert row in shown

    from mlflow.tracking import MlflowClient

    client = MlflowClient(f"sqlite:///{home / 'mlflow.db'}")
    (experiment,) = [e for e in client.search_experiments() if e.name == "small"]
    (child,) = client.search_runs([experiment.experiment_id], "tags.`alignflow.stage` = 'table'")
    measured = {name: value for name, value in child.data.metrics.items() if "/judge" in name}
    assert measured == {
        "other/judge/careful": 0.5, "other/judge_low/careful": 0.5, "other/judge_high/careful": 0.5,
        "other/judge_position_bias/careful": 1.0, "other/judge_agreement/careful": 0.0,
        "other/judge_unparsable/careful": 0.0, "other/judge_requests/careful": 8.0,
        "other/judge_prompt_tokens/careful": float(tokens), "other/judge_completion_tokens/careful": 32.0,
    }  # fmt: skip
    assert "verdicts.jsonl" in {file.path for file in client.list_artifacts(child.info.run_id)}

    study = home / "studies" / "small"
    report = (study / "report.html").read_text()
    assert "<h3>Judges</h3>" in report and "0.500 [0.500, 0.500]" in report
    head, line = (study / "table.judges.csv").read_text().splitlines()
    assert head.startswith("policy,against,judged_by,win_rate,win_rate_low,win_rate_high,prompts,")
    assert line.startswith("other,base,careful,0.5,0.5,0.5,4,")

    # Nothing needs the endpoint again, and a bar that is missed needs no new verdict.
    for verdict in (endpoint.bodies, endpoint.headers):
        verdict.clear()
    bar = "stages.table.expect={other: {judge.careful: '> 0.5'}}"
    missed = alignflow(folder, "run", "s.yaml", "--set", bar, PREFECT_API_URL=prefect_server)
    assert missed.returncode == 3 and endpoint.bodies == []
    assert "missed: table: other judge.careful is 0.5, expected > 0.5" in missed.stdout
    assert "1 of 1 expectations missed" in (study / "report.html").read_text()
    filters = {"artifacts": {"key": {"any_": ["report"]}}, "sort": "UPDATED_DESC", "limit": 1}
    (page,) = httpx.post(f"{prefect_server}/artifacts/filter", json=filters).json()
    assert "- **missed**: table: other judge.careful is 0.5, expected > 0.5" in page["data"]
    assert "| other | careful | 0.500 [0.500, 0.500] | 4 of 4 |" in page["data"]

    places = (tmp_path, Path(os.environ["PREFECT_HOME"]))  # the server's database is there
    kept = [path for place in places for path in place.rglob("*") if path.is_file()]
    assert any(b"${env:JUDGE_KEY}" in path.read_bytes() for path in kept if path.name.startswith("prefect.db"))
    assert not [path for path in kept if KEY.encode() in path.read_bytes()]
    record = json.loads((study / "table" / "record.json").read_text())
    assert "api_key" not in json.dumps(record["payload"])
