"""Where MLflow keeps a study's runs and promoted models, and whether it answers there. Known before MLflow is imported."""

from __future__ import annotations

import os
import urllib.error
import urllib.request
from pathlib import Path

from specs.base import expand_environment
from specs.problems import without_password, without_user
from specs.study import Study

HEALTH_TIMEOUT = 5.0  # seconds
DATABASES = ("sqlite", "postgresql", "mysql", "mssql")


def tracking_place(study: Study, home: Path) -> tuple[str, Path | None]:
    """The MLflow URI and where artifacts go; a tracking server has its own place for them."""
    return _place(expand_environment(study.tracking.uri or "", os.environ), home)


def default_place(home: Path) -> tuple[str, Path | None]:
    """The same of a study that names none."""
    return _place("", home)


def registry_place(study: Study | None, home: Path) -> tuple[str, Path | None]:
    """Where promoted models are, with their files: `MLFLOW_REGISTRY_URI`, else where the study keeps its runs (without a study:
    where one does that names no place)."""
    elsewhere = os.environ.get("MLFLOW_REGISTRY_URI")
    if elsewhere:
        return _place(elsewhere, home)
    return tracking_place(study, home) if study else default_place(home)


def unanswered(uri: str) -> str | None:
    """Why no tracking server answers at an address of the web, or None."""
    try:
        with urllib.request.urlopen(f"{without_user(uri).rstrip('/')}/health", timeout=HEALTH_TIMEOUT):
            return None
    except urllib.error.HTTPError:
        return None  # something answers; whether it lets us in is seen when it is used
    except (urllib.error.URLError, OSError, ValueError) as error:
        return str(getattr(error, "reason", error))


def mlflow_problem(uri: str) -> str | None:
    """Why the MLflow server or database at `uri` cannot be used, or None. SQLite is tried when it is opened."""
    if uri.startswith(DATABASES) and not uri.startswith("sqlite"):
        return _database_problem(uri)
    reason = unanswered(uri) if uri.startswith("http") else None
    if reason is None:
        return None
    return f"no MLflow server answers at {without_password(uri)} ({reason}); start it, or unset MLFLOW_TRACKING_URI for SQLite"


def _place(written: str, home: Path) -> tuple[str, Path | None]:
    uri = written or os.environ.get("MLFLOW_TRACKING_URI")
    if uri and not uri.startswith(DATABASES):
        return uri, None
    return uri or f"sqlite:///{home / 'mlflow.db'}", home / "mlartifacts"


def _database_problem(uri: str) -> str | None:
    """MLflow itself would try again and again for a hundred seconds, without a word to the person."""
    from sqlalchemy import create_engine

    try:
        with create_engine(uri).connect():
            return None
    except Exception as error:  # the drivers raise their own
        reason = without_password(str(error).splitlines()[0])
        return f"MLflow's database at {without_password(uri)} cannot be used: {reason}"
