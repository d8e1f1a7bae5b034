"""`alignflow up`: both servers and a worker with one command, found by the next run, gone with Ctrl-C."""

from __future__ import annotations

import json
import signal
import socket
from collections.abc import Iterator
from pathlib import Path

import pytest
import tiny
from going_up import Up, ask, free_port, get, going_up
from servers import until

from flows.cli import main

pytestmark = [pytest.mark.slow, pytest.mark.timeout(400)]

STUDY = """\
version: 1
name: small
seed: 3
models: {base: {source: ./model, precision: fp32}}
data: {prompts: {source: ./prompts.jsonl, format: prompt}}
stages: {rolls: {do: sample, from: base, prompts: prompts, samples: 2, max_new_tokens: 4}}
"""


@pytest.fixture(scope="module")
def up(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Up]:
    folder = tmp_path_factory.mktemp("up")
    tiny.language_model(folder / "model")
    tiny.write_lines(folder / "prompts.jsonl", [{"prompt": "Why?"}])
    (folder / "s.yaml").write_text(STUDY.replace("./", f"{folder}/"))
    with going_up(folder) as made:
        yield made


def test_both_addresses_are_printed_and_answer_and_the_page_asks_the_right_server(up: Up) -> None:
    prefect, mlflow = f"http://127.0.0.1:{up.port}", f"http://127.0.0.1:{up.mlflow_port}"
    assert prefect in up.printed and mlflow in up.printed
    assert json.loads(get(f"{prefect}/api/health")) is True
    assert json.loads(get(f"{prefect}/ui-settings"))["api_url"] == f"{prefect}/api"
    assert "<title>" in get(prefect) and get(f"{mlflow}/health") == "OK"


def test_a_plain_run_appears_in_both(up: Up) -> None:
    ran = up.run("run", "s.yaml", "--json")
    assert ran.returncode == 0, ran.stderr
    assert f"http://127.0.0.1:{up.mlflow_port}" in up.run("run", "s.yaml").stdout
    flows = ask(f"http://127.0.0.1:{up.port}/api/flow_runs/filter", {})
    assert [run["name"] for run in flows] == ["small", "small"] and flows[0]["state"]["type"] == "COMPLETED"
    assert [run["tags"] for run in flows] == [[f"home:{up.folder / 'home'}"]] * 2
    assert [run["tags"] for run in ask(f"{up.api}/task_runs/filter", {})] == [[]] * 2
    api = f"http://127.0.0.1:{up.mlflow_port}/api/2.0/mlflow"
    experiments = ask(f"{api}/experiments/search", {"max_results": 10})["experiments"]
    ids = [e["experiment_id"] for e in experiments if e["name"] == "small"]
    runs = ask(f"{api}/runs/search", {"experiment_ids": ids})["runs"]
    assert {run["info"]["run_name"].split()[0] for run in runs} == {"small", "rolls"}


def test_a_second_one_for_the_same_home_is_told_where_they_are(up: Up) -> None:
    ran = up.run("up", "--port", str(free_port()), "--mlflow-port", str(free_port()))
    assert ran.returncode == 4 and f"MLflow at http://127.0.0.1:{up.mlflow_port}" in ran.stderr


def test_a_port_that_is_taken_is_named(up: Up, home: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["up", "--port", str(up.port), "--mlflow-port", str(free_port())]) == 4
    told = capsys.readouterr().err
    assert f"port {up.port} cannot be had" in told and "name another with --port" in told
    assert main(["up", "--port", str(free_port()), "--mlflow-port", str(up.mlflow_port)]) == 4
    assert "--mlflow-port" in capsys.readouterr().err


def test_its_worker_serves_the_pool_one_study_at_a_time(up: Up) -> None:
    def serves() -> bool:
        return any(w["status"] == "ONLINE" for w in ask(f"{up.api}/work_pools/alignflow/workers/filter", {}))

    until(serves)
    assert "--limit\x001\x00" in Path(f"/proc/{up.parts['worker']}/cmdline").read_text()
    assert "worker   one study at a time" in up.printed


def test_ctrl_c_ends_all_of_it(up: Up) -> None:
    """The last of these tests: nothing is up afterwards."""
    children = [int(pid) for pid in Path(f"/proc/{up.process.pid}/task/{up.process.pid}/children").read_text().split()]
    assert len(children) == 3
    up.process.send_signal(signal.SIGINT)
    assert up.process.wait(60) == 130
    assert not any(Path(f"/proc/{pid}").exists() for pid in children)
    for port in (up.port, up.mlflow_port):
        with socket.socket() as probe:
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            probe.bind(("127.0.0.1", port))
    assert not (up.folder / "home" / "up.json").exists()
