"""Where MLflow keeps a study's runs. Known before MLflow is imported."""

from __future__ import annotations

import os
from pathlib import Path

from specs.base import expand_environment
from specs.study import Study

DATABASES = ("sqlite", "postgresql", "mysql", "mssql")


def tracking_place(study: Study, home: Path) -> tuple[str, Path | None]:
    """The MLflow URI and where artifacts go; a tracking server has its own place for them."""
    uri = expand_environment(study.tracking.uri or "", os.environ) or os.environ.get("MLFLOW_TRACKING_URI")
    if uri and not uri.startswith(DATABASES):
        return uri, None
    return uri or f"sqlite:///{home / 'mlflow.db'}", home / "mlartifacts"
