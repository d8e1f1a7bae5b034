"""The servers of a team, run from docker-compose.yml: what they let in, and a scheduled study while they go and come back."""

from __future__ import annotations

import shutil
import signal
import time
import urllib.error
import urllib.request
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import compose
import pytest
from native import Stack
from servers import Servers, until
from small_study import STUDY, TABLE, make_folder

pytestmark = [pytest.mark.slow, pytest.mark.timeout(600)]

PYTHON = ("prefect", "services", "mlflow")


@pytest.mark.parametrize("name", PYTHON)
def test_a_server_has_the_command_and_the_variables_of_the_compose_file(servers: Servers, name: str) -> None:
    stack = servers.stack
    service = stack.services[name]
    process = Path(f"/proc/{stack.processes[name].pid}")
    given = dict(pair.split("=", 1) for pair in process.joinpath("environ").read_text().split("\0") if pair)
    of_machine = {"PATH", "HOME", "LANG", "PYTHONPATH"}
    written = compose.image_environment() | service["environment"]
    assert given.keys() - of_machine == written.keys()
    line = process.joinpath("cmdline").read_text().rstrip("\0").split("\0")
    ran = line[-len(service["command"]) + 1 :]
    there = [*written.values(), *service["command"][1:]]
    here = [*(given[key] for key in written), *ran]
    assert Path(line[-len(service["command"])]).name == service["command"][0]
    assert [in_containers(stack, text) for text in here] == [in_containers(stack, text) for text in there]


def in_containers(stack: Stack, text: str) -> str:
    """A text of a process with the names, ports and places that containers have."""
    for name, port in stack.inside.items():
        text = text.replace(f"127.0.0.1:{stack.ports[name]}", f"{name}:{port}").replace(
            f"127.0.0.1:{port}", f"{name}:{port}"
        )
        text = text.replace(f"localhost:{stack.ports[name]}", f"localhost:{port}")
        text = port if text == str(stack.ports[name]) else text
    for here, there in (
        (stack.place("artifacts"), "/srv/mlflow"),
        (stack.folder / "configs/mlflow-auth", "/etc/mlflow/auth.ini"),
    ):
        text = text.replace(str(here), there)
    return text.replace("0.0.0.0", "127.0.0.1")


def test_nobody_is_let_in_without_the_password_and_mlflow_answers_to_its_own_names_alone(servers: Servers) -> None:
    experiments = f"{servers.mlflow}/api/2.0/mlflow/experiments/search?max_results=1"
    assert status(f"{servers.prefect}/admin/version") == status(experiments) == 401
    assert status(f"{servers.prefect}/ready") == status(f"{servers.mlflow}/health") == 200
    assert status(experiments, Host="elsewhere.example") == 403
    assert [e.name for e in servers.client().search_experiments()]
    assert isinstance(servers.ask("flows/filter", {}), list)


def status(url: str, **headers: str) -> int:
    try:
        with urllib.request.urlopen(urllib.request.Request(url, headers=headers), timeout=20) as response:
            return int(response.status)
    except urllib.error.HTTPError as error:
        return error.code


@pytest.fixture
def deployed(servers: Servers) -> Iterator[Path]:
    """The folder of studies with one that is due every quarter of a minute, deployed by the job that is for it; and a worker."""
    schedule = "schedule: {interval: 15s, active: true}\nexecution: {threads: 1}\n"
    folder = make_folder(
        servers.studies, STUDY.replace("name: small", "name: nightly") + TABLE + schedule, "nightly.yaml"
    )
    (folder / "hold").touch()
    servers.stack.up("init", "worker")
    yield folder
    servers.stack.stop("worker", signal.SIGKILL)
    for each in folder.iterdir():
        shutil.rmtree(each) if each.is_dir() else each.unlink()


def test_a_scheduled_study_is_finished_though_the_worker_and_every_server_die_meanwhile(
    servers: Servers, deployed: Path
) -> None:
    stack = servers.stack
    killed = at_work(servers, deployed)
    stack.stop("worker", signal.SIGKILL)
    assert state(servers, killed) == "Running", "nobody is there to say otherwise"
    stack.up("worker")
    last = at_work(servers, deployed)
    assert last != killed and state(servers, killed) == "Crashed"
    assert [run.info.status for run in mlflow_runs(servers)].count("RUNNING") == 2, (
        "the run that is at work, and its stage"
    )
    for name in ("prefect", "mlflow", "redis"):
        stack.stop(name, signal.SIGKILL)
    for name in ("services", "postgres"):
        stack.stop(name)
    (deployed / "hold").unlink()
    until(lambda: "label" in built(servers))
    time.sleep(5)  # a while in which the run has something to tell and nobody to tell it to
    stack.up("services", "mlflow")
    until(lambda: state(servers, last) != "Running")
    assert state(servers, last) == "Completed"
    until(lambda: len(flow_runs(servers, "COMPLETED")) > 1)
    assert built(servers) == Counter(["sample", "label", "reward_model", "decode", "evaluate"])
    switch_off(servers)
    until(lambda: not flow_runs(servers, "RUNNING", "PENDING", "CANCELLING"), 60)
    # Of tasks Prefect hears by events alone, and those of the time in which Redis was dead are lost with it: not asked here.
    runs = mlflow_runs(servers)
    assert Counter(run.info.status for run in runs if "alignflow.stage" not in run.data.tags)["KILLED"] == 1
    assert {run.info.status for run in runs} == {"FINISHED", "KILLED"}
    stages = Counter(
        run.data.tags["alignflow.stage"]
        for run in runs
        if run.info.status == "FINISHED" and "alignflow.stage" in run.data.tags
    )
    assert stages == Counter(["rolls", "pairs", "rm", "bon", "table"])
    (pairs,) = [r for r in runs if r.data.tags.get("alignflow.stage") == "pairs" and r.info.status == "FINISHED"]
    assert pairs.data.metrics["pairs"] > 0
    assert "pairs.jsonl" in {f.path for f in servers.client().list_artifacts(pairs.info.run_id)}


def switch_off(servers: Servers) -> None:
    (deployment,) = servers.ask("deployments/filter", {})
    servers.ask(f"deployments/{deployment['id']}/pause_deployment", {})


def at_work(servers: Servers, folder: Path) -> str:
    """Waits until a run that its schedule has started builds its second stage, and gives its id."""
    until(lambda: list(folder.glob("scoring.*")))
    for mark in folder.glob("scoring.*"):
        mark.unlink()
    (run,) = flow_runs(servers, "RUNNING")
    assert run["auto_scheduled"]
    return str(run["id"])


def state(servers: Servers, run: str) -> str:
    (found,) = servers.ask("flow_runs/filter", {"flow_runs": {"id": {"any_": [run]}}})
    return str(found["state"]["name"])


def built(servers: Servers) -> Counter[str]:
    return Counter(path.parent.parent.name for path in servers.stack.place("home").glob("store/*/*/record.json"))


def flow_runs(servers: Servers, *types: str) -> list[dict[str, Any]]:
    """The runs of the deployment."""
    wanted = {"flow_runs": {"state": {"type": {"any_": list(types)}}}} if types else {}
    return [r for r in servers.ask("flow_runs/filter", wanted) if r["name"] == "nightly"]


def mlflow_runs(servers: Servers) -> list[Any]:
    client = servers.client()
    experiment = client.get_experiment_by_name("nightly")
    return list(client.search_runs([experiment.experiment_id]))
