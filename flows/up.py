"""`alignflow up`: Prefect's server, MLflow's server and a worker for deployed studies on this machine, until Ctrl-C (or `kill`, or
the end of the terminal).

What they keep lies in the home folder, and a run of the same home finds them by the note that lies there while they are up.
"""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from filelock import FileLock, Timeout

from flows import server, silence, working
from registry.home import make_home
from specs.problems import UnfitError, UserError
from tasks import gpus, tracking_file
from tasks.places import mlflow_problem

INTERRUPTS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)


def up(*, port: int, mlflow_port: int) -> int:
    """Starts all three, prints where they are, and waits. Returns the exit status: 130 on Ctrl-C, 1 where one of them died.
    Raises `UserError` for a port that there cannot be, and `UnfitError` where a port is taken, one of them does not start, or they
    are up already."""
    silence.apply()
    home = make_home()
    if found := server.of_up(home):
        prefect = server.page(found["prefect"])
        raise UnfitError(f"they are up already for {home}: Prefect at {prefect}, MLflow at {found['mlflow']}")
    if port == mlflow_port:
        raise UserError(f"port {port} cannot be had by both servers; name another with --port or --mlflow-port")
    for taken, option in ((port, "--port"), (mlflow_port, "--mlflow-port")):
        _require_free(taken, option)
    lock = FileLock(home / server.LOCK)
    try:
        lock.acquire(timeout=1)  # until this process ends; who looks whether it is held has it for a moment
    except Timeout:
        raise UnfitError(f"another `alignflow up` for {home} is starting") from None
    (home / server.NOTE).unlink(missing_ok=True)  # of one that was killed: it names what may be another's by now
    logs = home / "logs" / "up"
    logs.mkdir(parents=True, exist_ok=True)
    with _on_interrupts(signal.default_int_handler):
        return _kept_up(home, port, mlflow_port, logs)


def _kept_up(home: Path, port: int, mlflow_port: int, logs: Path) -> int:
    prefect, mlflow = f"http://127.0.0.1:{port}", f"http://127.0.0.1:{mlflow_port}"
    parts: dict[str, subprocess.Popen[bytes]] = {}
    try:
        parts["mlflow"] = _start("mlflow", _mlflow(home, mlflow_port), logs, _mlflow_environment())
        parts["prefect"] = _start("prefect", _prefect(port), logs, _prefect_environment(home, port))
        server.wait_for(f"{prefect}/api", logs / "prefect.log", parts["prefect"])
        _wait_for_mlflow(mlflow, logs / "mlflow.log", parts["mlflow"])
        with server.noted(home, f"{prefect}/api", mlflow):
            worker = ["-P", "-m", "flows.working"]
            parts["worker"] = _start("worker", worker, logs, _worker_environment(home, f"{prefect}/api"))
            print(f"Prefect  {prefect}\nMLflow   {mlflow}\nworker   {_at_once()}\nlogs     {logs}", flush=True)
            print("Ctrl-C stops all.", flush=True)
            while True:
                for name, part in parts.items():
                    if part.poll() is not None:
                        print(f"{name} has ended; its log is {logs / name}.log", file=sys.stderr)
                        return 1
                time.sleep(0.5)
    except KeyboardInterrupt:
        return 130
    finally:
        with _on_interrupts(signal.SIG_IGN):  # a second one would leave some of it running
            if "worker" in parts:  # first, for a run that is stopped has something to tell both servers
                working.stop(home, parts.pop("worker"))
            for part in reversed(parts.values()):
                server.end(part, patience=20)


def _at_once() -> str:
    count = gpus.studies_at_once()
    return "one study at a time" if count == 1 else f"{count} studies at a time"


def _require_free(port: int, option: str) -> None:
    with socket.socket() as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind(("127.0.0.1", port))
        except OverflowError:
            raise UserError(f"port {port} cannot be had: ports go up to 65535; name another with {option}") from None
        except OSError as error:
            raise UnfitError(f"port {port} cannot be had ({error.strerror}); name another with {option}") from None


def _start(name: str, command: list[str], logs: Path, environment: dict[str, str]) -> subprocess.Popen[bytes]:
    """Leads a session of its own, so that Ctrl-C reaches this process alone, which ends the others in order. The worker, told to
    end, would wait for its runs and for a server that is gone with this process: it is not asked."""
    death = signal.SIGKILL if name == "worker" else signal.SIGTERM
    with (logs / f"{name}.log").open("ab") as log:
        return subprocess.Popen(
            [sys.executable, *command],
            env=os.environ | environment,
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=log,
            start_new_session=True,
            preexec_fn=lambda: server.die_with_parent(death),
        )


def _prefect(port: int) -> list[str]:
    return ["-P", "-m", "prefect", "server", "start", "--host", "127.0.0.1", "--port", str(port)]


def _prefect_environment(home: Path, port: int) -> dict[str, str]:
    api = f"http://127.0.0.1:{port}/api"
    # The page asks for its data where it is told, which is port 4200 unless one says otherwise.
    # Slots that are taken are remembered on the disk, so that those of the dead are given back after a restart.
    leases = {"PREFECT_SERVER_CONCURRENCY_LEASE_STORAGE": "prefect.server.concurrency.lease_storage.filesystem"}
    return {"PREFECT_HOME": str(home / "prefect"), "PREFECT_UI_API_URL": api, "PREFECT_API_URL": api} | leases


def _worker_environment(home: Path, api: str) -> dict[str, str]:
    # What it runs has a temporary folder for its current one, so that nothing may hang on that.
    return {"ALIGNFLOW_HOME": str(home), "PREFECT_HOME": str(home / "prefect"), "PREFECT_API_URL": api}


def _mlflow(home: Path, port: int) -> list[str]:
    store = [
        "--backend-store-uri",
        tracking_file.made(f"sqlite:///{home / 'mlflow.db'}"),
        "--default-artifact-root",
        str(home / "mlartifacts"),
    ]
    return ["-P", "-m", "mlflow", "server", "--host", "127.0.0.1", "--port", str(port), "--workers", "1", *store]


def _mlflow_environment() -> dict[str, str]:
    return {"MLFLOW_SERVER_ENABLE_JOB_EXECUTION": "false"}


def _wait_for_mlflow(url: str, log: Path, process: subprocess.Popen[bytes]) -> None:
    deadline = time.monotonic() + server.STARTUP
    while mlflow_problem(url) is not None:
        if time.monotonic() > deadline or process.poll() is not None:
            raise UnfitError(f"MLflow's server did not start; its log is {log}")
        time.sleep(0.2)


@contextmanager
def _on_interrupts(handler: Any) -> Iterator[None]:
    """What Ctrl-C, `kill` and the end of the terminal do meanwhile. What is ignored before, as under `nohup`, stays so."""
    before = {number: signal.getsignal(number) for number in INTERRUPTS}
    for number, was in before.items():
        if was != signal.SIG_IGN:
            signal.signal(number, handler)
    try:
        yield
    finally:
        for number, was in before.items():
            signal.signal(number, was)
