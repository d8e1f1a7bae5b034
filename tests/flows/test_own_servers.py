"""Which servers a home takes for its own, which runs there it takes for dead, what `alignflow up` refuses, and how it is stopped."""

from __future__ import annotations

import importlib
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import SimpleNamespace
from typing import Any
from uuid import UUID, uuid4

import handmade
import pytest
from command import told
from going_up import free_port, home_in
from prefect import flow, task
from prefect.client.orchestration import SyncPrefectClient, get_client
from prefect.settings import PREFECT_API_URL, temporary_settings
from prefect.states import Failed, Paused, Running
from servers import until

from flows import server, sweeping
from registry.claims import claim
from registry.home import make_home

PAGES = "http://127.0.0.1:7777"
UP = """\
import sys
from pathlib import Path
from filelock import FileLock
from flows import server
home = Path(sys.argv[1])
with FileLock(home / server.LOCK), server.noted(home, *sys.argv[2:]):
    print("up", flush=True)
    sys.stdin.read()
"""


@contextmanager
def being_up(home: Path, prefect: str) -> Iterator[subprocess.Popen[bytes]]:
    """What `alignflow up` is to a run: a living process with a note."""
    line = [sys.executable, "-c", UP, str(make_home()), prefect, PAGES]
    with subprocess.Popen(line, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as process:
        assert process.stdout is not None and process.stdout.readline() == b"up\n"
        try:
            yield process
        finally:
            process.kill()


@pytest.fixture
def client(prefect_server: str) -> Iterator[SyncPrefectClient]:
    with temporary_settings({PREFECT_API_URL: prefect_server}), get_client(sync_client=True) as made:
        yield made


@flow(name=sweeping.FLOW)
def align() -> None:
    """Stands for a study's run."""


@task
def stand_in() -> None:
    """And for a stage of it."""


def begun(client: SyncPrefectClient, home: Path, **more: Any) -> UUID:
    with sweeping.of_home(home) as marks:
        return client.create_flow_run(align, tags=marks, **{"state": Running()} | more).id


def deployed(client: SyncPrefectClient, home: Path) -> UUID:
    variables = {"env": {"ALIGNFLOW_HOME": str(home)}}
    made = client.create_deployment(client.create_flow(align), f"small-{uuid4()}", job_variables=variables)
    return client.create_flow_run_from_deployment(made, state=Running()).id


def states(client: SyncPrefectClient, *runs: UUID) -> list[str]:
    found = [client.read_flow_run(run).state for run in runs]
    return [state.type.value for state in found if state is not None]


def test_a_note_whose_writer_was_killed_is_not_believed_though_somebody_elses_server_answers(
    home: Path, prefect_server: str
) -> None:
    with being_up(home, prefect_server) as process:
        assert server.of_up(home) == {"prefect": prefect_server, "mlflow": PAGES}
        process.kill()
        process.wait()
        assert (home / server.NOTE).exists() and server.of_up(home) == {}


def test_of_the_runs_on_a_server_only_those_of_this_home_that_nobody_claims_are_taken_for_dead(
    home: Path, tmp_path: Path, client: SyncPrefectClient
) -> None:
    make_home()
    gone = [begun(client, home), deployed(client, home), begun(client, home, state=Paused(timeout_seconds=3600))]
    alive = [begun(client, home), begun(client, tmp_path / "other"), deployed(client, tmp_path / "other")]
    unknown = client.create_flow_run(align, state=Running()).id
    held = claim(home, "held", sweeping.begun(str(alive[0]), None, is_deployed=False))
    sweeping.sweep_server(home, since=time.time() - 3600)
    assert states(client, *gone, *alive) == ["RUNNING", "RUNNING", "PAUSED", "RUNNING", "RUNNING", "RUNNING"]
    sweeping.sweep_server(home, since=time.time() + 60)
    assert states(client, *gone) == ["CRASHED"] * 3
    assert states(client, *alive, unknown) == ["RUNNING"] * 4
    held.end()


def test_what_died_while_it_waited_for_a_person_is_closed_by_the_next(
    home: Path, client: SyncPrefectClient, prefect_server: str
) -> None:
    run = begun(client, home, state=Paused(timeout_seconds=3600))
    dead = claim(home, str(run), sweeping.begun(str(run), prefect_server, is_deployed=False))
    dead.lock.release()  # as the kernel does
    sweeping.sweep(home, prefect_server, None, "sqlite:///x")  # type: ignore[arg-type]
    assert states(client, run) == ["CRASHED"]


def test_stages_of_a_dead_run_that_told_of_its_own_death_alone_are_closed_too(
    home: Path, client: SyncPrefectClient, prefect_server: str
) -> None:
    run = begun(client, home, state=Failed())
    stage = client.create_task_run(stand_in, run, dynamic_key="0", state=Running())
    dead = claim(home, str(run), sweeping.begun(str(run), prefect_server, is_deployed=False))
    dead.lock.release()
    sweeping.sweep(home, prefect_server, None, "sqlite:///x")  # type: ignore[arg-type]
    assert states(client, run) == ["FAILED"] and client.read_task_run(stage.id).state_type == "CRASHED"


def test_a_deployed_run_leads_to_the_pages_of_mlflow_where_they_are(
    tmp_path: Path, home: Path, client: SyncPrefectClient, prefect_server: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("ALIGNFLOW_MLFLOW_PAGES", "")
    monkeypatch.delenv("ALIGNFLOW_MLFLOW_PAGES")  # so that it is as it was afterwards
    module: Any = importlib.import_module("flows.align")  # the package's `align` is the flow
    view = handmade.view(tmp_path)
    monkeypatch.setattr(module.deployed, "checked", lambda *_, **__: view)
    with being_up(home, prefect_server):
        run = SimpleNamespace(id=uuid4(), deployment_id=uuid4())
        session = module.open_session(run, view.study, tmp_path, False, frozenset())
    assert session.tracker.url(session.tracker.parent).startswith(f"{PAGES}/#/experiments/")
    session.claim.end()


@pytest.mark.parametrize(
    ("ports", "why"),
    [
        (("70000", "5000"), "port 70000 cannot be had: ports go up to 65535; name another with --port"),
        (("4200", "70000"), "port 70000 cannot be had: ports go up to 65535; name another with --mlflow-port"),
        (("5000", "5000"), "port 5000 cannot be had by both servers; name another with --port or --mlflow-port"),
    ],
)
def test_ports_that_cannot_be_are_told_before_anything_starts(
    ports: tuple[str, str], why: str, home: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert told(capsys, "up", "--port", ports[0], "--mlflow-port", ports[1]) == (2, [], [why])
    assert not (home / server.LOCK).exists()


@pytest.mark.slow
@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGHUP], ids=lambda number: number.name)
def test_kill_and_the_end_of_the_terminal_stop_it_as_ctrl_c_does(
    number: int, tmp_path: Path, home: Path, prefect_server: str
) -> None:
    note = make_home() / server.NOTE
    note.write_text(json.dumps({"prefect": prefect_server, "mlflow": PAGES}))  # of one that was killed
    ports = ["--port", str(free_port()), "--mlflow-port", str(free_port())]
    line = [sys.executable, "-m", "flows.cli", "up", *ports]
    process = subprocess.Popen(line, cwd=tmp_path, env=os.environ | home_in(tmp_path))
    log = home / "logs" / "up" / "prefect.log"
    until(lambda: log.exists() and log.read_text())  # both servers are starting
    children = Path(f"/proc/{process.pid}/task/{process.pid}/children").read_text().split()
    assert len(children) == 2 and not note.exists()
    process.send_signal(number)
    assert process.wait(60) == 130
    assert not any(Path(f"/proc/{child}").exists() for child in children)
