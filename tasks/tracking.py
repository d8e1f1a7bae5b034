"""What MLflow is told: one parent run a flow run, one child run a stage, by explicit run ids.

A stage's work is never lost to a tracking fault: once a run is under way, what cannot be logged is
remembered in `lost` and said at the end.
"""

from __future__ import annotations

import json
import os
import time
from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path
from typing import Any

from mlflow.entities import (
    Dataset,
    DatasetInput,
    InputTag,
    LoggedModelInput,
    LoggedModelOutput,
    Metric,
    Param,
    RunTag,
)
from mlflow.exceptions import MlflowException
from mlflow.tracking import MlflowClient

from specs.problems import UnfitError, without_password, without_user
from tasks import tracking_file
from tasks.places import unanswered

MAX_TABLE_ROWS = 500
MAX_ARTIFACT_BYTES = 10_000_000
_PARAM_LENGTH = 6000  # MLflow's limit; longer values would be cut without a word


class Tracker:
    """Logs one study run. Thread-safe: every call names its run."""

    def __init__(self, uri: str, experiment: str, artifacts: Path | None):
        """Raises `UnfitError` where the tracking server or database cannot be used."""
        self.uri = without_password(uri)  # to be shown; the client alone holds the password
        self.lost: list[str] = []
        self.untold = False
        """Whether MLflow still takes a run for running because it could not be told how that ended."""
        try:
            self.client = MlflowClient(tracking_uri=tracking_file.made(uri))
            self.experiment_id = self._experiment(experiment, artifacts)
        except Exception as error:  # the backends raise their own: SQLAlchemy, requests, MLflow
            raise UnfitError(f"MLflow at {self.uri} cannot be used: {brief(error)}") from error
        self.parent = ""
        self._is_away = False
        """Whether the server did not answer when it was asked last."""

    def _experiment(self, name: str, artifacts: Path | None) -> str:
        found = self.client.get_experiment_by_name(name)
        if found:
            if found.lifecycle_stage == "deleted":
                self.client.restore_experiment(found.experiment_id)
            return str(found.experiment_id)
        try:
            location = artifacts.as_uri() if artifacts else None
            return str(self.client.create_experiment(name, artifact_location=location))
        except MlflowException:  # another process made it meanwhile
            found = self.client.get_experiment_by_name(name)
            if found is None:
                raise
            return str(found.experiment_id)

    def start_parent(self, name: str, tags: Mapping[str, str], spec: Mapping[str, Any]) -> None:
        try:
            run = self.client.create_run(self.experiment_id, run_name=name, tags=dict(tags))
        except Exception as error:  # a disk that is full, for one
            raise UnfitError(f"MLflow at {self.uri} cannot be used: {brief(error)}") from error
        self.parent = run.info.run_id
        self._safely(lambda: self.client.log_dict(self.parent, dict(spec), "spec.json"))
        self._safely(lambda: self.client.log_dict(self.parent, dict(spec), "spec.yaml"))

    def start_child(self, name: str, tags: Mapping[str, str], params: Mapping[str, Any]) -> str:
        """A stage's run; its id, or an empty text where MLflow did not answer."""
        made = self._safely(
            lambda: self.client.create_run(
                self.experiment_id, run_name=name, tags={**tags, "mlflow.parentRunId": self.parent}
            )
        )
        if made is None:
            return ""
        run = str(made.info.run_id)
        flat = [Param(k, v) for k, v in _flat(params).items() if len(v) <= _PARAM_LENGTH]
        self._safely(lambda: self.client.log_batch(run, params=flat[:100]))
        return run

    def metrics(self, run: str, values: Mapping[str, float], step: int = 0, model: str | None = None) -> None:
        """Of the run, and with `model` of that model too, on whose page they then stand."""
        now = int(time.time() * 1000)
        batch = [Metric(k, float(v), now, step, model_id=model) for k, v in values.items()]
        self.metric_batch(run, batch)

    def metric_batch(self, run: str, batch: list[Metric]) -> None:
        for start in range(0, len(batch), 1000):
            self._safely(partial(self.client.log_batch, run, metrics=batch[start : start + 1000]), run)

    def tag(self, run: str, tags: Mapping[str, str]) -> None:
        batch = [RunTag(k, v[:5000]) for k, v in tags.items()]
        self._safely(lambda: self.client.log_batch(run, tags=batch), run)

    def table(self, run: str, rows: list[dict[str, Any]], name: str) -> None:
        """A table of generations, at most `MAX_TABLE_ROWS` rows: MLflow's page draws all of them."""
        some = rows[:MAX_TABLE_ROWS]
        if some:
            columns = {key: [row[key] for row in some] for key in some[0]}
            self._safely(lambda: self.client.log_table(run, columns, name), run)

    def files(self, run: str, folder: Path) -> None:
        """The artifact's small files; weights stay in the store, which the run's tags name."""
        for path in sorted(p for p in folder.rglob("*") if p.is_file()):
            if path.suffix != ".safetensors" and path.stat().st_size <= MAX_ARTIFACT_BYTES:
                parent = str(path.relative_to(folder).parent)
                place = None if parent == "." else parent
                self._safely(partial(self.client.log_artifact, run, str(path), place), run)

    def document(self, run: str, content: Mapping[str, Any], name: str) -> None:
        self._safely(lambda: self.client.log_dict(run, dict(content), name), run)

    def file(self, run: str, path: Path, folder: str | None = None) -> None:
        self._safely(lambda: self.client.log_artifact(run, str(path), folder), run)

    def holds(self, run: str, folder: str) -> bool:
        """Whether a run has files in a folder; taken for so where MLflow does not answer."""
        found = self._safely(lambda: self.client.list_artifacts(run, folder), run)
        return found is None or bool(found)

    def dataset_in(self, run: str, name: str, fingerprint: str, source: str, context: str) -> None:
        """An edge from a data set. MLflow takes digests of at most 36 characters."""
        entity = Dataset(name=name, digest=fingerprint[:32], source_type="local", source=json.dumps({"uri": source}))
        edge = DatasetInput(entity, tags=[InputTag("mlflow.data.context", context)])
        self._safely(lambda: self.client.log_inputs(run, datasets=[edge]), run)

    def model_out(self, run: str, name: str, tags: Mapping[str, str]) -> str | None:
        """Makes a model entity of a trained artifact and the edge to it; its id."""
        made = self._safely(
            lambda: self.client.create_logged_model(
                self.experiment_id, name=name, source_run_id=run or None, tags=dict(tags), model_type="alignflow"
            ),
            run,
        )
        if made is None:
            return None
        model_id = str(made.model_id)
        self._safely(lambda: self.client.finalize_logged_model(model_id, "READY"), run)
        self._safely(lambda: self.client.log_outputs(run, [LoggedModelOutput(model_id, 0)]), run)
        return model_id

    def model_in(self, run: str, model_id: str) -> None:
        self._safely(lambda: self.client.log_inputs(run, models=[LoggedModelInput(model_id)]), run)

    def finish(self, run: str, status: str) -> None:
        def end() -> bool:
            self.client.set_terminated(run, status)
            return True

        if run and not self._safely(end, run):
            self.untold = True

    def finish_strays(self, flow_run: str) -> None:
        """Ends what the flow run has still open when all of it is finished: a run that a server began when it died, before it
        could say so, and began again when it was asked again."""
        self._safely(lambda: end_runs(self.client, self.experiment_id, flow_run, "KILLED"), self.parent)

    def url(self, run: str) -> str:
        """The run's page: on the tracking server, which a browser may know by another name, or where `mlflow ui` would show it."""
        server = without_user(self.uri) if self.uri.startswith("http") else "http://127.0.0.1:5000"
        server = os.environ.get("ALIGNFLOW_MLFLOW_PAGES", server).rstrip("/")
        return f"{server}/#/experiments/{self.experiment_id}/runs/{run}"

    def _safely(self, call: Callable[[], Any], run: str = "-") -> Any:
        if not run:
            return None
        try:
            if self._is_away and (reason := unanswered(self.uri)):  # the client would ask for minutes, at every call
                raise ConnectionError(f"{self.uri}: {reason}")
            self._is_away = False
            return call()
        except Exception as error:  # a lost connection must not cost a finished stage
            self._is_away = self.uri.startswith("http") and unanswered(self.uri) is not None
            told = brief(error)
            if told not in self.lost:
                self.lost.append(told)
            return None


def end_runs(client: MlflowClient, experiment: str, flow_run: str, status: str) -> None:
    """Ends the runs of a flow run, parent and children, that are marked as running."""
    which = f"tags.`prefect.flow_run_id` = '{flow_run}' and attributes.status = 'RUNNING'"
    for run in client.search_runs([experiment], which):
        client.set_terminated(run.info.run_id, status)


def brief(error: Exception) -> str:
    """The first line, cut only after a password is out: half an address would not be known for one."""
    return without_password(next(iter(str(error).strip().splitlines()), type(error).__name__))[:200]


def _flat(params: Mapping[str, Any], prefix: str = "") -> dict[str, str]:
    flat: dict[str, str] = {}
    for key, value in params.items():
        if isinstance(value, Mapping):
            flat |= _flat(value, f"{prefix}{key}.")
        elif value is not None:
            flat[prefix + key] = value if isinstance(value, str) else json.dumps(value)
    return flat
