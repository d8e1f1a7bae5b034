"""The worker of `alignflow up`: closes what the dead left open, and becomes Prefect's worker.

`flows.team_worker` starts it for a Prefect server of a team's, which PREFECT_API_URL names.
"""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
import time
from contextlib import suppress
from pathlib import Path

from flows import server, silence
from registry.claims import living
from registry.home import make_home
from specs.problems import without_password
from tasks import gpus, tracking_file
from tasks.places import default_place

PATIENCE = 30.0
"""Seconds in which a run that is told to stop has done so: its stage's process is killed, and both servers hear of it."""


def work() -> None:
    """Does not return: the process goes on as Prefect's worker, each run in a process of its own below it."""
    silence.apply()
    home = make_home()
    url = os.environ["PREFECT_API_URL"]
    server.require(url)
    from mlflow.tracking import MlflowClient
    from prefect.client.orchestration import get_client

    from flows import pool, sweeping

    place = sweeping.prefect_place(home, url)
    uri, _ = default_place(home)
    with get_client(sync_client=True) as client:
        pool.make(client)
    sweeping.sweep(home, place, MlflowClient(tracking_file.made(uri)), without_password(uri))
    if place == sweeping.UP:
        sweeping.sweep_server(home, (home / server.NOTE).stat().st_mtime)
    command = ["-P", "-m", "prefect", "worker", "start", "--type", "process", "--pool", pool.NAME]
    options = ["--name", socket.gethostname(), "--limit", str(gpus.studies_at_once())]
    # Whoever presses "run" waits for the worker's next look, which Prefect has every 10 seconds.
    os.environ.setdefault("PREFECT_WORKER_QUERY_SECONDS", "2")
    if "PREFECT_WORKER_WEBSERVER_PORT" in os.environ:
        options += ["--with-healthcheck"]
    os.execv(sys.executable, [sys.executable, *command, *options])


def stop(home: Path, worker: subprocess.Popen[bytes]) -> None:
    """Ends the runs that are below a worker, and then it: told by itself it would kill them before they have told anyone."""
    told: set[int] = set()
    deadline = time.monotonic() + PATIENCE
    while (running := _runs(home)) and time.monotonic() < deadline:
        for process in running - told if worker.poll() is None else ():  # its death has told them already
            told.add(process)
            _send(process, signal.SIGTERM)
        time.sleep(0.2)
    for process in _runs(home):  # it waits for a server that does not answer, say
        _send(process, signal.SIGKILL)
    server.end(worker)


def _runs(home: Path) -> set[int]:
    """The processes of deployed runs."""
    return {note["process"] for note in living(home) if "process" in note}


def _send(process: int, number: int) -> None:
    with suppress(ProcessLookupError):
        os.kill(process, number)


if __name__ == "__main__":
    work()
