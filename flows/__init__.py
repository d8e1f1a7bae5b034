"""The imperative shell: the align flow, the command line, the report."""

from flows import silence as silence  # before anything imports Prefect or MLflow
