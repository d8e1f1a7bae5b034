"""Which Prefect server a run talks to: the one that is configured, that of `alignflow up`, or a temporary one of its own.

The temporary server starts while this process still imports, writes to a log file, leads a session of
its own (so that Ctrl-C in the terminal leaves it time to hear how the run ended), and dies with this process.
"""

from __future__ import annotations

import atexit
import base64
import ctypes
import fcntl
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

from specs.problems import UnfitError, without_password

NOTE = "up.json"
"""Where `alignflow up` writes down its addresses, in the home folder."""
LOCK = "up.lock"
"""What `alignflow up` holds there as long as it lives. Its death, however it came, frees it, and may leave the note."""
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
    # What answers there once it was killed may be another home's.
    return note if _is_held(home / LOCK) and _answers(note["prefect"], 5) else {}


def _is_held(lock: Path) -> bool:
    """Whether a living process has it. It is asked for to be shared: of two who ask at once neither takes the other for that one."""
    try:
        with lock.open() as file:
            fcntl.flock(file, fcntl.LOCK_SH | fcntl.LOCK_NB)
            return False
    except OSError as error:
        return isinstance(error, BlockingIOError)


def lead_to_pages(home: Path, tracking: str) -> None:
    """Has links to runs in the home's own database lead to the MLflow server of `alignflow up`, if it is up."""
    if tracking == f"sqlite:///{home / 'mlflow.db'}" and (up := of_up(home)):
        os.environ.setdefault("ALIGNFLOW_MLFLOW_PAGES", up["mlflow"])


def page(url: str) -> str:
    """The address of the Prefect server's pages, of its API's."""
    return url.rstrip("/").removesuffix("/api")


def lasting(home: Path) -> str:
    """The API of a server that outlives this command. Raises `UnfitError` where there is none."""
    url = configured_url(Path.cwd()) or of_up(home).get("prefect")
    if not url:
        raise UnfitError(
            "a deployment needs a Prefect server that stays: start `alignflow up`, or name one by PREFECT_API_URL"
        )
    require(url)
    return url


def require(url: str) -> None:
    """Raises `UnfitError` where no Prefect API answers at `url`, or it does not let this process in."""
    if not _answers(url, 5):
        raise UnfitError(
            f"no Prefect server answers at {without_password(url)}; start it, or name none "
            "(PREFECT_API_URL, prefect.toml, profile) to use a temporary one"
        )
    if not _lets_in(url):
        raise UnfitError(
            f"the Prefect server at {without_password(url)} asks who is there; set PREFECT_API_AUTH_STRING to USER:PASSWORD"
        )


def _lets_in(url: str) -> bool:
    """Its `/health` is open to all, the rest may not be."""
    place = f"{url.rstrip('/')}/admin/version"
    if os.environ.get("PREFECT_API_KEY") or _status(place) not in (401, 403):
        return True
    word = os.environ.get("PREFECT_API_AUTH_STRING")
    if word is None:
        from prefect.settings import get_current_settings  # of a profile or a file; a second of imports

        kept = get_current_settings().api.auth_string
        word = kept.get_secret_value() if kept else None
    return word is not None and _status(place, word) not in (401, 403)


def _status(place: str, word: str | None = None, timeout: float = 5) -> int:
    """Of an answer to GET; 0 where there is none."""
    headers = {"Authorization": f"Basic {base64.b64encode(word.encode()).decode()}"} if word else {}
    try:
        with urllib.request.urlopen(urllib.request.Request(place, headers=headers), timeout=timeout) as response:
            return int(response.status)
    except urllib.error.HTTPError as error:
        return error.code
    except (urllib.error.URLError, OSError, ValueError):
        return 0


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
    _temporary.add(url)
    return url


def is_temporary(url: str) -> bool:
    """Whether this process started the server, which will end with it."""
    return url in _temporary


_temporary: set[str] = set()


def wait_for(url: str, log: Path, process: subprocess.Popen[bytes] | None = None) -> None:
    """Returns when the server answers. Raises `UnfitError` where it does not in time, or its `process` has ended."""
    deadline = time.monotonic() + STARTUP
    while not _answers(url, 2):
        if time.monotonic() > deadline or (process is not None and process.poll() is not None):
            raise UnfitError(f"the Prefect server did not start; its log is {log}")
        time.sleep(0.05)


def _answers(url: str, timeout: float) -> bool:
    """Also one that wants to know who asks: Prefect's client will tell it."""
    return _status(f"{url.rstrip('/')}/health", timeout=timeout) in (200, 401, 403)


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def die_with_parent(number: int = signal.SIGTERM) -> None:
    """Linux: the kernel sends SIGTERM, or another signal, to this process when its parent is gone. Elsewhere nothing does."""
    with suppress(OSError, AttributeError):
        ctypes.CDLL(None).prctl(1, number)


def end(process: subprocess.Popen[bytes], patience: float = 5) -> None:
    """Ends a process, by force after `patience` seconds."""
    with suppress(ProcessLookupError):
        process.terminate()
    try:
        process.wait(timeout=patience)
    except subprocess.TimeoutExpired:
        process.kill()
        process.wait()
