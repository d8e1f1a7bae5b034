"""The servers of a team: Prefect's and MLflow's, both on a real PostgreSQL, started on free ports for the tests."""

from __future__ import annotations

import getpass
import json
import os
import secrets
import signal
import socket
import subprocess
import sys
import time
import urllib.request
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from flows import server

DATABASE = os.environ.get("ALIGNFLOW_TEST_POSTGRES", "postgresql://127.0.0.1:5432/postgres")


@dataclass(frozen=True)
class Servers:
    """Where they answer, and what must not be shown."""

    prefect: str
    mlflow: str
    password: str
    databases: tuple[Any, Any]
    """SQLAlchemy addresses of Prefect's database and of MLflow's."""
    artifacts: Path

    def environment(self, **changes: str) -> dict[str, str]:
        with_password = self.mlflow.replace("://", f"://someone:{self.password}@")
        return os.environ | {"PREFECT_API_URL": self.prefect, "MLFLOW_TRACKING_URI": with_password} | changes

    def ask(self, path: str, body: dict[str, Any]) -> Any:
        address, kind = f"{self.prefect}/{path}/filter", {"Content-Type": "application/json"}
        with urllib.request.urlopen(urllib.request.Request(address, json.dumps(body).encode(), kind)) as response:
            return json.load(response)

    def tables_with(self, text: str) -> set[str]:
        """The tables of both databases in which some row holds `text`."""
        import psycopg

        found = set()
        for address in self.databases:
            with psycopg.connect(whole(address)) as connection:
                tables = connection.execute("SELECT tablename FROM pg_tables WHERE schemaname = 'public'").fetchall()
                for (table,) in tables:
                    query = f"SELECT 1 FROM \"{table}\" AS t WHERE t::text LIKE '%{text}%' LIMIT 1"
                    if connection.execute(query).fetchall():  # type: ignore[arg-type]
                        found.add(table)
        return found


def whole(address: Any, driver: str = "") -> str:
    """An address as text, its password in it."""
    chosen = address.set(drivername=f"postgresql+{driver}") if driver else address
    return str(chosen.render_as_string(hide_password=False))


@contextmanager
def running(folder: Path) -> Iterator[Servers]:
    """Starts them on new databases, which go with them. Skips the test where no PostgreSQL answers."""
    import psycopg
    from sqlalchemy.engine import make_url

    try:
        admin = psycopg.connect(DATABASE, autocommit=True, connect_timeout=5)
    except psycopg.OperationalError as error:
        pytest.skip(
            f"THE REAL SERVERS WERE NOT TESTED: no PostgreSQL answers at {make_url(DATABASE)!r} ({error}); "
            "set ALIGNFLOW_TEST_POSTGRES to one where databases may be made"
        )
    address = make_url(DATABASE)
    # Where PostgreSQL trusts its clients any password will do, and an odd one is easily found.
    password = str(address.password or f"hush{secrets.token_hex(8)}")
    address = address.set(drivername="postgresql", username=address.username or getpass.getuser(), password=password)
    names = [f"alignflow_test_{secrets.token_hex(4)}_{what}" for what in ("prefect", "mlflow")]
    databases = address.set(database=names[0]), address.set(database=names[1])
    ports = [_free_port(), _free_port()]
    prefect, mlflow = (f"http://127.0.0.1:{port}" for port in ports)
    made = Servers(f"{prefect}/api", mlflow, password, databases, folder / "artifacts")
    commands = [
        ["prefect", "server", "start", "--no-ui"],
        ["mlflow", "server", "--workers", "1", "--artifacts-destination", str(made.artifacts)],
    ]
    environment = os.environ | {
        "PREFECT_HOME": str(folder / "home"), "PREFECT_SERVER_ANALYTICS_ENABLED": "false", "DO_NOT_TRACK": "1",
        "PREFECT_SERVER_DATABASE_CONNECTION_URL": whole(databases[0], "asyncpg"),
        "MLFLOW_BACKEND_STORE_URI": whole(databases[1], "psycopg"),
        "MLFLOW_DISABLE_TELEMETRY": "true", "MLFLOW_SERVER_ENABLE_JOB_EXECUTION": "false",
    }  # fmt: skip
    processes: list[subprocess.Popen[bytes]] = []
    try:
        for name, command, port in zip(names, commands, ports, strict=True):
            admin.execute(f"CREATE DATABASE {name}")  # type: ignore[arg-type]
            line = [sys.executable, "-m", *command, "--host", "127.0.0.1", "--port", str(port)]
            with (folder / f"{name}.log").open("wb") as log:
                processes.append(
                    subprocess.Popen(line, cwd=folder, env=environment, stdout=log, stderr=log, start_new_session=True)
                )
        server.wait_for(made.prefect, folder / f"{names[0]}.log")
        until(lambda: server.mlflow_problem(made.mlflow) is None)
        yield made
    finally:
        for process in processes:
            _end(process)
        for name in names:
            admin.execute(f"DROP DATABASE IF EXISTS {name} WITH (FORCE)")  # type: ignore[arg-type]
        admin.close()


def until(condition: Callable[[], Any], seconds: float = 120) -> None:
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, "waited in vain"
        time.sleep(0.05)


def _end(process: subprocess.Popen[bytes]) -> None:
    """Ends a server and what it started."""
    with suppress(ProcessLookupError):
        os.killpg(process.pid, signal.SIGTERM)
    with suppress(subprocess.TimeoutExpired):
        process.wait(20)
    with suppress(ProcessLookupError):
        os.killpg(process.pid, signal.SIGKILL)
    process.wait()


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])
