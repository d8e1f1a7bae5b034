"""`alignflow up` in a process of its own, and what its servers say."""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from servers import until

OPEN = ("RUNNING", "PENDING", "CANCELLING")


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def get(url: str, data: bytes | None = None) -> str:
    """What is answered. 503 is how a Prefect server says that its SQLite is busy: its own clients ask again too."""
    request = urllib.request.Request(url, data, {"Content-Type": "application/json"} if data else {})
    for _ in range(20):
        try:
            with urllib.request.urlopen(request, timeout=20) as response:
                return str(response.read().decode())
        except urllib.error.HTTPError as refusal:
            if refusal.code != 503:
                raise
            time.sleep(0.5)
    raise AssertionError(f"{url} stays unavailable")


def ask(url: str, body: dict[str, Any]) -> Any:
    return json.loads(get(url, json.dumps(body).encode()))


def home_in(folder: Path) -> dict[str, str]:
    return {"ALIGNFLOW_HOME": str(folder / "home"), "PREFECT_PROFILES_PATH": str(folder / "profiles.toml")}


@dataclass
class Up:
    process: subprocess.Popen[bytes]
    folder: Path
    port: int
    mlflow_port: int

    @property
    def printed(self) -> str:
        return (self.folder / "out").read_text()

    @property
    def api(self) -> str:
        return f"http://127.0.0.1:{self.port}/api"

    @property
    def parts(self) -> dict[str, int]:
        """The processes of its servers and of its worker."""
        children = Path(f"/proc/{self.process.pid}/task/{self.process.pid}/children").read_text().split()
        lines = {int(pid): Path(f"/proc/{pid}/cmdline").read_text() for pid in children}
        called = {"mlflow\0server": "mlflow", "prefect\0server": "prefect", "prefect\0worker": "worker"}
        return {name: pid for pid, line in lines.items() for words, name in called.items() if words in line}

    def run(self, *command: str) -> subprocess.CompletedProcess[str]:
        line = [sys.executable, "-m", "flows.cli", *command]
        environment = {
            name: value for name, value in os.environ.items() if name not in ("PREFECT_API_URL", "MLFLOW_TRACKING_URI")
        }
        return subprocess.run(
            line, cwd=self.folder, env=environment | home_in(self.folder), capture_output=True, text=True
        )

    def deployment(self, name: str) -> dict[str, Any]:
        found: dict[str, Any] = json.loads(get(f"{self.api}/deployments/name/align/{name}"))
        return found

    def start(self, name: str, **changes: Any) -> Any:
        """A run of a deployment, with parts of its study changed as its form does; or the status of the refusal and what
        it says."""
        deployment = self.deployment(name)
        parameters = deployment["parameters"]
        parameters["study"] |= changes
        try:
            return ask(f"{self.api}/deployments/{deployment['id']}/create_flow_run", {"parameters": parameters})["id"]
        except urllib.error.HTTPError as refusal:
            return refusal.code, refusal.read().decode()

    def ended(self, run: str, seconds: float = 150) -> dict[str, Any]:
        """The last state of a run."""
        until(lambda: self.state(run)["type"] not in (*OPEN, "SCHEDULED"), seconds)
        return self.state(run)

    def state(self, run: str) -> dict[str, Any]:
        state: dict[str, Any] = json.loads(get(f"{self.api}/flow_runs/{run}"))["state"]
        return state

    def stages(self, run: str) -> dict[str, str]:
        """What Prefect calls the state of each of a run's stages; it comes to know some of it after the run ended."""

        def told() -> dict[str, str]:
            found = ask(f"{self.api}/task_runs/filter", {"flow_runs": {"id": {"any_": [run]}}})
            return {each["name"]: each["state_name"] for each in found}

        until(lambda: told() and not set(told().values()) & {"Pending", "Running"}, 30)
        return told()

    def marked_open(self) -> list[str]:
        """What either server takes for running."""
        which = {"state": {"type": {"any_": list(OPEN)}}}
        flows = ask(f"{self.api}/flow_runs/filter", {"flow_runs": which})
        tasks = ask(f"{self.api}/task_runs/filter", {"task_runs": which})
        api = f"http://127.0.0.1:{self.mlflow_port}/api/2.0/mlflow"
        experiments = ask(f"{api}/experiments/search", {"max_results": 50})["experiments"]
        runs = ask(
            f"{api}/runs/search",
            {
                "experiment_ids": [each["experiment_id"] for each in experiments],
                "filter": "attributes.status = 'RUNNING'",
            },
        )
        return [each["name"] for each in (*flows, *tasks)] + [each["info"]["run_name"] for each in runs.get("runs", [])]


@contextmanager
def going_up(folder: Path) -> Iterator[Up]:
    ports = free_port(), free_port()
    line = [sys.executable, "-m", "flows.cli", "up", "--port", str(ports[0]), "--mlflow-port", str(ports[1])]
    with (folder / "out").open("wb") as out:
        process = subprocess.Popen(line, cwd=folder, env=os.environ | home_in(folder), stdout=out, stderr=out)
    made = Up(process, folder, *ports)
    try:
        until(lambda: "Ctrl-C" in made.printed or process.poll() is not None, 240)
        assert process.poll() is None, made.printed
        yield made
    finally:
        with suppress(ProcessLookupError):
            process.send_signal(signal.SIGINT)
        try:
            process.wait(90)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()
