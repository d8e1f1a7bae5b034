"""Which Prefect server a run talks to: the one that is configured, that of `alignflow up`, or a temporary one of its own.

The temporary server starts while this process still imports, writes to a log file, leads a session of
its own (so that Ctrl-C in the terminal leaves it time to hear how the run ended), and dies with this process.
"""

from __future__ import annotations

import atexit
import ctypes
import json
import os
import signal
import socket
import subprocess
import sys
import sysconfig
import time
import tomllib
import urllib.error
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from specs.problems import UnfitError, without_password, without_user
from tasks.places import DATABASES

NOTE = "up.json"
"""Where `alignflow up` writes down its addresses, in the home folder."""
STARTUP = 120.0  # seconds; the first start of a new Prefect home runs its migrations


def configured_url(folder: Path) -> str | None:
    """The API that Prefect's own settings name: environment, `prefect.toml`, `pyproject.toml`, active profile."""
    if os.environ.get("PREFECT_API_URL"):
        return os.environ["PREFECT_API_URL"]
    for path, keys in ((folder / "prefect.toml", ()), (folder / "pyproject.toml", ("tool", "prefect"))):
        settings = _toml(path)
        for key in keys:
            settings = settings.get(key, {})
        url = settings.get("api", {}).get("url")
        if url:
            return str(url)
    home = Path(os.environ.get("PREFECT_HOME", "~/.prefect")).expanduser()
    profiles = _toml(Path(os.environ.get("PREFECT_PROFILES_PATH", home / "profiles.toml")))
    active = os.environ.get("PREFECT_PROFILE") or profiles.get("active", "")
    url = profiles.get("profiles", {}).get(active, {}).get("PREFECT_API_URL")
    return str(url) if url else None


def _toml(path: Path) -> dict[str, Any]:
    try:
        return tomllib.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}


@contextmanager
def noted(home: Path, prefect: str, mlflow: str) -> Iterator[None]:
    """While this lasts, runs of this home find these servers."""
    note = home / NOTE
    note.write_text(json.dumps({"prefect": prefect, "mlflow": mlflow}), encoding="utf-8")
    try:
        yield
    finally:
        note.unlink(missing_ok=True)


def of_up(home: Path) -> dict[str, str]:
    """The addresses `prefect` and `mlflow` of the servers that `alignflow up` runs for this home; empty where none answers."""
    try:
        note: dict[str, str] = json.loads((home / NOTE).read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    return note if _answers(note["prefect"], 5) else {}  # else it was killed before it could take the note away


def require(url: str) -> None:
    """Raises `UnfitError` where no Prefect API answers at `url`."""
    if not _answers(url, 5):
        raise UnfitError(
            f"no Prefect server answers at {without_password(url)}; start it, or name none "
            "(PREFECT_API_URL, prefect.toml, profile) to use a temporary one"
        )


def mlflow_problem(uri: str) -> str | None:
    """Why the MLflow server or database at `uri` cannot be used, or None. SQLite is tried when it is opened."""
    if uri.startswith(DATABASES) and not uri.startswith("sqlite"):
        return _database_problem(uri)
    if not uri.startswith("http"):
        return None
    try:
        with urllib.request.urlopen(f"{without_user(uri).rstrip('/')}/health", timeout=5):
            return None
    except urllib.error.HTTPError:
        return None  # something answers; whether it lets us in is seen when it is used
    except (urllib.error.URLError, OSError, ValueError) as error:
        reason = getattr(error, "reason", error)
        return f"no MLflow server answers at {without_password(uri)} ({reason}); start it, or unset MLFLOW_TRACKING_URI for SQLite"


def _database_problem(uri: str) -> str | None:
    """MLflow itself would try again and again for a hundred seconds, without a word to the person."""
    from sqlalchemy import create_engine

    try:
        with create_engine(uri).connect():
            return None
    except Exception as error:  # the drivers raise their own
        reason = without_password(str(error).splitlines()[0])
        return f"MLflow's database at {without_password(uri)} cannot be used: {reason}"


def start_temporary(log: Path) -> str:
    """Starts a server and gives its API address at once; `wait_for` says when it answers.

    It ends when this process does, after what Prefect registers to be done then: its log and event workers
    still have something to deliver, and would wait more than a minute for a server that is gone.
    """
    port = _free_port()
    url = f"http://127.0.0.1:{port}/api"
    environment = os.environ | {
        "PREFECT_UI_ENABLED": "0",
        "PREFECT__SERVER_EPHEMERAL": "1",
        "PREFECT__SERVER_FINAL": "1",
        "PREFECT_API_URL": "",
        "PREFECT_SERVER_ANALYTICS_ENABLED": "false",
    }
    command = [sys.executable, "-P", "-m", "uvicorn", "--factory", "prefect.server.api.server:create_app"]
    # uvicorn puts a folder in front of what is imported: not the current one, where a person's `prefect.py` may lie.
    command += ["--app-dir", sysconfig.get_path("purelib")]
    command += ["--host", "127.0.0.1", "--port", str(port), "--log-level", "error", "--lifespan", "on"]
    with log.open("ab") as output:
        process = subprocess.Popen(
            command,
            env=environment,
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=output,
            start_new_session=True,
            preexec_fn=die_with_parent,
        )
    atexit.register(end, process)
    return url


def wait_for(url: str, log: Path, process: subprocess.Popen[bytes] | None = None) -> None:
    """Returns when the server answers. Raises `UnfitError` where it does not in time, or its `process` has ended."""
    deadline = time.monotonic() + STARTUP
    while not _answers(url, 2):
        if time.monotonic() > deadline or (process is not None and process.poll() is not None):
            raise UnfitError(f"the Prefect server did not start; its log is {log}")
        time.sleep(0.05)


def _answers(url: str, timeout: float) -> bool:
    try:
        with urllib.request.urlopen(f"{url.rstrip('/')}/health", timeout=timeout) as response:
            return bool(response.status == 200)
    except urllib.error.HTTPError as error:
        return error.code in (401, 403)  # it answers, and wants to know who asks; Prefect's client will tell it
    except (urllib.error.URLError, OSError, ValueError):
        return False


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def die_with_parent() -> None:
    """Linux: the kernel sends SIGTERM to this process when its parent is gone. Elsewhere nothing does."""
    with suppress(OSError, AttributeError):
        ctypes.CDLL(None).prctl(1, signal.SIGTERM)


def end(process: subprocess.Popen[bytes], patience: float = 5) -> None:
    """Ends a process, by force after `patience` seconds."""
    with suppress(ProcessLookupError):
        process.terminate()
    try:
        process.wait(timeout=patience)
    except subprocess.TimeoutExpired:
        process.kill()
        process.wait()
