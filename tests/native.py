"""The services of docker-compose.yml run by this machine instead of containers: the very commands, variables and health checks.

Only what containers give is replaced: a service's name and port by a port of this machine, the place of a volume or of a
configuration file by a folder. What the images of PostgreSQL and Redis bring are Debian's packages.
"""

from __future__ import annotations

import os
import re
import shutil
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

import compose
import psutil
import pytest

PROGRAMS = ("initdb", "pg_ctl", "pg_isready", "postgres", "psql", "redis-cli", "redis-server")
FOLDERS = [str(Path(sys.executable).parent), *map(str, sorted(Path("/usr/lib/postgresql").glob("*/bin"), reverse=True))]
PATH = os.pathsep.join([*FOLDERS, "/usr/local/bin", "/usr/bin", "/bin"])


def require_programs() -> None:
    """Skips the test where a program is not installed."""
    if missing := [name for name in PROGRAMS if shutil.which(name, path=PATH) is None]:
        pytest.skip(
            f"THE TEAM STACK WAS NOT TESTED: {', '.join(missing)} missing; Debian: apt install postgresql redis-server"
        )


class Stack:
    """See the module. `folder` must be one that PostgreSQL's own user may enter."""

    def __init__(self, folder: Path, variables: dict[str, str]):
        self.folder = folder
        self.document = compose.read(variables)
        self.services: dict[str, Any] = self.document["services"]
        self.processes: dict[str, subprocess.Popen[bytes]] = {}
        inside = {name: _port(service) for name, service in self.services.items()}
        self.inside = {name: port for name, port in inside.items() if port}
        self.ports = dict(zip(self.inside, _free_ports(len(self.inside)), strict=True))

    def up(self, *names: str) -> None:
        """Starts services in the order of what they depend on, each when that is healthy, and waits until all are; a job,
        until it has ended well."""
        waiting, ready = self._with_what_they_need(names), set()
        deadlines: dict[str, float] = {}
        while waiting - ready:
            for name in waiting - ready:
                if name not in deadlines:
                    if set(self.services[name].get("depends_on", ())) <= ready:
                        if name not in self.processes or self.processes[name].poll() is not None:
                            self.start(name)
                        deadlines[name] = time.monotonic() + self._patience(name)
                elif self.is_healthy(name):
                    ready.add(name)
                else:
                    told = f"{name} is not healthy:\n{self.log(name)[-3000:]}"
                    ended = self.processes[name].poll()
                    assert ended in (None, 0) and time.monotonic() < deadlines[name], told
            time.sleep(0.3)

    def start(self, name: str) -> None:
        environment = self.environment(name)
        Path(environment["HOME"]).mkdir(parents=True, exist_ok=True)
        for place in self._places(name).values():
            place.parent.mkdir(parents=True, exist_ok=True)
        for config in self.services[name].get("configs", ()):
            content = self.document["configs"][config["source"]]["content"]
            self._places(name)[config["target"]].write_text(self.natively(name, content))
        user = {}
        if name == "postgres":
            user = _database_user()
            self._make_database(environment, user)
        with self._log(name).open("ab") as log:
            self.processes[name] = subprocess.Popen(
                self.command(name), env=environment, cwd=environment["HOME"], stdin=subprocess.DEVNULL, stdout=log, stderr=log,
                start_new_session=True, **user,
            )  # fmt: skip

    def stop(self, name: str, number: int = signal.SIGTERM) -> None:
        """As an engine stops a container: the first process is told, in its time; when it is gone, or with SIGKILL, all are."""
        process = self.processes[name]
        members = list(self.members(name))
        if number != signal.SIGKILL and process.poll() is None:
            process.send_signal(number)
            with suppress(subprocess.TimeoutExpired):
                process.wait(_seconds(self.services[name].get("stop_grace_period", "10s")))
        while members := [p for p in {*members, *self.members(name)} if _is_alive(p)]:
            for member in members:
                with suppress(psutil.NoSuchProcess):
                    member.kill()
            process.poll()  # so that none of them stays a zombie
            time.sleep(0.05)

    def down(self) -> None:
        for name in reversed(self.processes):
            self.stop(name)

    def members(self, name: str) -> Iterator[psutil.Process]:
        """Every process of a service: those below its first one, and those that have lost theirs and are known by their HOME
        (PostgreSQL and Redis write over what they were given)."""
        first = self.processes[name].pid
        for process in psutil.process_iter():
            with suppress(psutil.Error):
                below = any(above.pid == first for above in (process, *process.parents()))
                mine = below or process.environ().get("HOME") == self._home(name)
                if mine and process.status() != psutil.STATUS_ZOMBIE:
                    yield process

    def is_healthy(self, name: str) -> bool:
        if name not in self.processes:
            return False
        if "healthcheck" not in self.services[name]:
            return self.processes[name].poll() == 0
        kind, *check = self.services[name]["healthcheck"]["test"]
        assert kind == "CMD"
        line = [self.natively(name, part) for part in check]
        limit = _seconds(self.services[name]["healthcheck"]["timeout"])
        with suppress(subprocess.TimeoutExpired):
            return not subprocess.run(line, env=self.environment(name), capture_output=True, timeout=limit).returncode
        return False

    def command(self, name: str) -> list[str]:
        return [self.natively(name, part) for part in self.services[name]["command"]]

    def environment(self, name: str) -> dict[str, str]:
        """Nothing of this process's own environment but where Python finds the packages."""
        service = self.services[name]
        image = compose.image_environment() if "build" in service else {}
        written = {key: self.natively(name, value) for key, value in service.get("environment", {}).items()}
        found = {"PYTHONPATH": os.environ["PYTHONPATH"]} if "PYTHONPATH" in os.environ else {}
        return {"PATH": PATH, "HOME": self._home(name), "LANG": "C.UTF-8"} | found | image | written

    def url(self, name: str) -> str:
        return f"http://127.0.0.1:{self.ports[name]}"

    def place(self, volume: str) -> Path:
        """The folder of a named volume."""
        return self.folder / "volumes" / volume

    def log(self, name: str) -> str:
        return self._log(name).read_text(errors="replace") if self._log(name).exists() else ""

    def natively(self, service: str, text: str) -> str:
        """A text of a service, with what only containers have replaced."""
        for name, port in self.inside.items():
            known = f"(?:{name}|127\\.0\\.0\\.1)" if self.services[name].get("ports") else name
            text = re.sub(rf"(?<![\w.-]){known}:{port}\b", f"127.0.0.1:{self.ports[name]}", text)
        if service in self.inside:
            text = re.sub(rf"\b{self.inside[service]}\b", str(self.ports[service]), text)
        for inside, outside in self._places(service).items():
            text = re.sub(rf"{re.escape(inside)}(?![\w.-])", str(outside), text)
        return re.sub(r"\b0\.0\.0\.0\b", "127.0.0.1", text)

    def _places(self, name: str) -> dict[str, Path]:
        """Where the volumes and configuration files of a service lie here, by their place in its container."""
        places = {}
        for volume in self.services[name].get("volumes", ()):
            source, target = volume.removesuffix(":ro").split(":")
            places[target] = self.place(source) if source in self.document["volumes"] else Path(source).resolve()
            places[target].mkdir(parents=True, exist_ok=True)
        for config in self.services[name].get("configs", ()):
            places[config["target"]] = self.folder / "configs" / config["source"]
        return places

    def _home(self, name: str) -> str:
        return str(self.folder / "homes" / name)

    def _log(self, name: str) -> Path:
        return self.folder / f"{name}.log"

    def _patience(self, name: str) -> float:
        check = self.services[name].get("healthcheck", {"interval": "5s", "retries": 24})
        return _seconds(check["interval"]) * int(check["retries"])

    def _with_what_they_need(self, names: Sequence[str]) -> set[str]:
        needed = set(names)
        for name in names:
            needed |= self._with_what_they_need(list(self.services[name].get("depends_on", ())))
        return needed

    def _make_database(self, environment: dict[str, str], user: dict[str, Any]) -> None:
        """What the image of PostgreSQL does at its first start."""
        data = Path(environment["PGDATA"])
        if data.exists():
            return
        secret = self.folder / "superuser"
        secret.write_text(environment["POSTGRES_PASSWORD"])
        (script,) = (self._places("postgres")["/docker-entrypoint-initdb.d/databases.sql"],)
        for path in (data.parent, secret, script):
            shutil.chown(path, user.get("user"), user.get("group")) if user else None

        def run(*line: str) -> None:
            done = subprocess.run(line, env=environment, cwd=data.parent, capture_output=True, text=True, **user)
            assert done.returncode == 0, f"{line}: {done.stdout}{done.stderr}"

        run(
            "initdb",
            "--username=postgres",
            f"--pwfile={secret}",
            "--auth-local=trust",
            "--auth-host=scram-sha-256",
            "--no-sync",
        )
        with (data / "postgresql.conf").open("a") as settings:
            settings.write(f"unix_socket_directories = '{data.parent}'\n")
        secret.unlink()
        run("pg_ctl", "--wait", f"--log={data.parent}/first.log", "-o", "-c listen_addresses=''", "start")
        run("psql", "-v", "ON_ERROR_STOP=1", "--no-psqlrc", "-h", str(data.parent), "-U", "postgres", "-f", str(script))
        run("pg_ctl", "--wait", "--mode=fast", "stop")


def _database_user() -> dict[str, Any]:
    """PostgreSQL refuses to run as root."""
    return {"user": "postgres", "group": "postgres", "extra_groups": []} if os.geteuid() == 0 else {}


def _is_alive(process: psutil.Process) -> bool:
    with suppress(psutil.NoSuchProcess):
        return process.is_running() and process.status() != psutil.STATUS_ZOMBIE
    return False


def _port(service: dict[str, Any]) -> str:
    """The port that a service listens to in its container."""
    (*published, exposed) = [*service.get("expose", []), *(p.rsplit(":", 1)[1] for p in service.get("ports", []))] or [
        ""
    ]
    assert not published
    return str(exposed)


def _seconds(text: str) -> float:
    return float(text[:-1]) * {"s": 1, "m": 60}[text[-1]]


def _free_ports(count: int) -> list[int]:
    probes = [socket.socket() for _ in range(count)]
    try:
        for probe in probes:
            probe.bind(("127.0.0.1", 0))
        return [int(probe.getsockname()[1]) for probe in probes]
    finally:
        for probe in probes:
            probe.close()
