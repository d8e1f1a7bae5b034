"""Where MLflow keeps a study's runs. Known before MLflow is imported."""

from __future__ import annotations

import os
from pathlib import Path

from specs.base import expand_environment
from specs.study import Study


def tracking_place(study: Study, home: Path) -> tuple[str, Path | None]:
    """The MLflow URI and, for the SQLite default, where its artifacts go."""
    if study.tracking.uri:
        return expand_environment(study.tracking.uri, os.environ), None
    if os.environ.get("MLFLOW_TRACKING_URI"):
        return os.environ["MLFLOW_TRACKING_URI"], None
    return f"sqlite:///{home / 'mlflow.db'}", home / "mlartifacts"
