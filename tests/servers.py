"""The servers of a team as docker-compose.yml has them, with PostgreSQL and Redis of their own, run by this machine for tests."""

from __future__ import annotations

import base64
import json
import os
import secrets
import shutil
import tempfile
import time
import urllib.request
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import compose
import native


@dataclass(frozen=True)
class Servers:
    """Where they answer, and what must not be shown."""

    stack: native.Stack
    secrets: dict[str, str]

    @property
    def prefect(self) -> str:
        return f"{self.stack.url('prefect')}/api"

    @property
    def mlflow(self) -> str:
        return self.stack.url("mlflow")

    @property
    def studies(self) -> Path:
        return self.stack.folder / "studies"

    @property
    def artifacts(self) -> Path:
        return self.stack.place("artifacts")

    def environment(self, **changes: str) -> dict[str, str]:
        """That of a person who runs studies on another machine; the password of MLflow is in its address."""
        told = {
            "PREFECT_API_URL": self.prefect,
            "PREFECT_API_AUTH_STRING": f"team:{self.secrets['PREFECT_PASSWORD']}",
            "MLFLOW_TRACKING_URI": self.with_password,
        }
        return os.environ | told | changes

    @property
    def with_password(self) -> str:
        return self.mlflow.replace("://", f"://admin:{self.secrets['MLFLOW_PASSWORD']}@")

    def client(self) -> Any:
        from mlflow.tracking import MlflowClient

        return MlflowClient(self.with_password)

    def ask(self, path: str, body: dict[str, Any]) -> Any:
        user = base64.b64encode(f"team:{self.secrets['PREFECT_PASSWORD']}".encode()).decode()
        headers = {"Content-Type": "application/json", "Authorization": f"Basic {user}"}
        request = urllib.request.Request(f"{self.prefect}/{path}", json.dumps(body).encode(), headers)
        with urllib.request.urlopen(request, timeout=20) as response:
            return json.load(response)

    def database(self, name: str) -> Any:
        """The SQLAlchemy address of Prefect's database or of MLflow's."""
        from sqlalchemy.engine import URL

        password = self.secrets[f"{name.upper()}_DATABASE_PASSWORD"]
        return URL.create("postgresql+psycopg", name, password, "127.0.0.1", self.stack.ports["postgres"], name)

    def tables_with(self, text: str) -> set[str]:
        """The tables of both databases in which some row holds `text`."""
        import psycopg

        found = set()
        for name in ("prefect", "mlflow"):
            given = self.database(name).translate_connect_args(username="user", database="dbname")
            with psycopg.connect(**given) as connection:
                tables = connection.execute("SELECT tablename FROM pg_tables WHERE schemaname = 'public'").fetchall()
                for (table,) in tables:
                    query = f'SELECT 1 FROM "{table}" AS t WHERE strpos(t::text, %s) > 0 LIMIT 1'
                    if connection.execute(query, [text]).fetchall():  # type: ignore[arg-type]
                        found.add(table)
        return found


def whole(address: Any) -> str:
    """An address as text, its password in it."""
    return str(address.render_as_string(hide_password=False))


@contextmanager
def running() -> Iterator[Servers]:
    """Starts them, and takes them down with all that they kept. Skips the test where their programs are not installed."""
    native.require_programs()
    folder = Path(tempfile.mkdtemp(prefix="alignflow-team-"))
    folder.chmod(0o755)  # PostgreSQL runs as a user of its own
    (folder / "studies").mkdir()
    made = {name: f"hush{secrets.token_hex(8)}" for name, value in compose.example().items() if not value}
    made["PREFECT_DATABASE_PASSWORD"] += "'%/@ $\\"  # nothing of it is quoted anywhere, and need not be
    servers = Servers(
        native.Stack(folder, compose.example() | made | {"ALIGNFLOW_STUDIES": str(folder / "studies")}), made
    )
    try:
        servers.stack.up("services", "mlflow")
        yield servers
    finally:
        servers.stack.down()
        shutil.rmtree(folder)


def until(condition: Callable[[], Any], seconds: float = 120) -> None:
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, "waited in vain"
        time.sleep(0.05)
