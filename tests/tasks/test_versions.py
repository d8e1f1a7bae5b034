"""Where MLflow does not say what a promoted model is, that is one line about MLflow, and none about the study."""

from __future__ import annotations

import sqlite3
from collections.abc import Iterator
from contextlib import closing
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from threading import Thread

import pytest
from command import told

from tasks.tracking_file import made

STUDY = """\
version: 1
name: small
models: {base: {source: "models:/positive@champion"}}
data: {prompts: {source: quickstart-eval, format: prompt}}
stages:
  rolls: {do: sample, from: base, prompts: prompts}
"""


class Locked(BaseHTTPRequestHandler):
    """What an MLflow server with users says to who shows no password."""

    def do_GET(self) -> None:
        is_open = self.path == "/health"
        text = (
            "OK"
            if is_open
            else "You are not authenticated. Please see https://www.mlflow.org/docs on how to authenticate."
        )
        self.send_response(200 if is_open else 401)
        self.send_header("Content-Length", str(len(text)))
        self.end_headers()
        self.wfile.write(text.encode())

    do_POST = do_GET

    def log_message(self, *_: object) -> None:
        pass


@pytest.fixture
def locked() -> Iterator[str]:
    server = ThreadingHTTPServer(("127.0.0.1", 0), Locked)
    thread = Thread(target=server.serve_forever, args=(0.05,))
    thread.start()
    yield f"http://127.0.0.1:{server.server_port}"
    server.shutdown()
    thread.join()
    server.server_close()


@pytest.fixture
def study(tmp_path: Path, home: Path) -> Path:
    (tmp_path / "s.yaml").write_text(STUDY)
    return tmp_path / "s.yaml"


@pytest.mark.parametrize("verb", ["check", "plan", "run"])
def test_a_server_that_asks_who_is_there_is_exit_status_4_with_what_to_set(
    verb: str, study: Path, locked: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    for name in ("MLFLOW_TRACKING_USERNAME", "MLFLOW_TRACKING_PASSWORD"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("MLFLOW_TRACKING_URI", locked)
    reason = "it asks who is there; set MLFLOW_TRACKING_USERNAME and MLFLOW_TRACKING_PASSWORD"
    assert told(capsys, verb, str(study)) == (4, [], [f"environment: MLflow at {locked} cannot be used: {reason}"])


def test_a_database_of_another_mlflow_is_exit_status_4_with_what_to_run(
    study: Path, home: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    home.mkdir()
    uri = made(f"sqlite:///{home}/mlflow.db")
    with closing(sqlite3.connect(home / "mlflow.db")) as database, database:
        database.execute("UPDATE alembic_version SET version_num = 'an older one'")
    status, out, (line,) = told(capsys, "check", str(study))
    assert (status, out) == (4, [])
    assert line.startswith(f"environment: MLflow at {uri} cannot be used: Detected out-of-date database schema")
    assert "mlflow db upgrade" in line
    (home / "mlflow.db").write_text("not a database at all" * 100)
    status, out, (line,) = told(capsys, "check", str(study))
    assert (status, out) == (4, []) and line.startswith(f"environment: MLflow at {uri} cannot be used: ")
