"""`alignflow doctor`: what a run depends on, found out and not assumed."""

from __future__ import annotations

import os
import shutil
from importlib.metadata import PackageNotFoundError, requires, version
from pathlib import Path
from typing import Any

from packaging.requirements import Requirement

from flows import server
from flows.silence import QUIET
from registry.home import make_home
from registry.precision import best
from specs.problems import UnfitError, without_password
from tasks.places import mlflow_problem

NEEDED_BYTES = 2_000_000_000


def examine() -> list[dict[str, Any]]:
    """`{what, found, fit}` for each thing looked at."""
    return [*_packages(), *_places(), *_servers(), *_devices(), *_telemetry()]


def _finding(what: str, found: str, fit: bool = True) -> dict[str, Any]:
    return {"what": what, "found": found, "fit": fit}


def _packages() -> list[dict[str, Any]]:
    """What `pyproject.toml` asks for, against what is installed."""
    findings = []
    for requirement in map(Requirement, requires("alignflow") or []):
        if requirement.marker is not None:  # of an extra
            continue
        wanted = requirement.specifier
        try:
            found = version(requirement.name)
        except PackageNotFoundError:
            findings.append(_finding(requirement.name, f"not installed; wanted {wanted}", False))
            continue
        fit = wanted.contains(found, prereleases=True)
        findings.append(_finding(requirement.name, found if fit else f"{found}; wanted {wanted}", fit))
    return findings


def _places() -> list[dict[str, Any]]:
    try:
        home = make_home()
    except UnfitError as error:
        return [_finding("home", str(error), False)]
    free = shutil.disk_usage(home).free
    return [
        _finding("home", f"{home} can be written"),
        _finding("disk", f"{free / 1e9:.1f} GB free", free > NEEDED_BYTES),
    ]


def _servers() -> list[dict[str, Any]]:
    findings = []
    url = server.configured_url(Path.cwd())
    if url is None:
        findings.append(_finding("Prefect", "no server is configured; each run starts a temporary one"))
    else:
        try:
            server.require(url)
            findings.append(_finding("Prefect", f"a server answers at {without_password(url)}"))
        except UnfitError as error:
            findings.append(_finding("Prefect", str(error), False))
    uri = os.environ.get("MLFLOW_TRACKING_URI")
    if uri is None:
        findings.append(_finding("MLflow", "SQLite in the home folder"))
    else:
        problem = mlflow_problem(uri)
        findings.append(_finding("MLflow", problem or "MLFLOW_TRACKING_URI answers", problem is None))
    return findings


def _devices() -> list[dict[str, Any]]:
    from tasks.gpus import device_names

    gpus = device_names()
    cores = len(os.sched_getaffinity(0))
    found = f"{len(gpus)} GPUs" if gpus else "none; stages run on the processor"
    return [
        _finding("GPU", found),
        _finding("processor", f"{cores} cores, `precision: auto` is {best(len(gpus))}"),
    ]


def _telemetry() -> list[dict[str, Any]]:
    on = [name for name, value in QUIET.items() if os.environ.get(name) != value]
    return [_finding("telemetry", f"asked for by {', '.join(on)}" if on else "off in every layer")]
