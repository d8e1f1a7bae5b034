"""`run_step`, the single Prefect task: everything that cuts across the stages happens once, here.

Look up the fingerprint; if it is stored the task's state is `Cached`. Otherwise lock it, look again, take GPU
slots, open an MLflow run, run the body in a child process, publish, record, report.
"""

from __future__ import annotations

import shutil
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from datetime import UTC, datetime
from typing import Any

from mlflow.entities import Metric
from prefect import task
from prefect.artifacts import create_progress_artifact, update_progress_artifact
from prefect.cache_policies import NO_CACHE
from prefect.concurrency.sync import concurrency
from prefect.context import TaskRunContext
from prefect.states import Completed, State

from registry.provenance import provenance
from registry.store import Stored, building, drop_if_empty, find, locked, publish, scratch_of
from specs.base import seconds
from specs.data import Data
from specs.models import Model
from specs.problems import UnfitError, UserError
from tasks import child, gpus
from tasks.bodies import BODIES
from tasks.evaluation_table import generations, named
from tasks.inputs import RESPONSES, dropped_rows, read_lines
from tasks.session import Session
from tasks.view import Work

TRAINED = (
    "sft", "reward_model", "autoregressive_reward_model", "prefix_scorer", "rl", "rrhf", "raft", "dpo", "qrpo", "bond", "soup",
)  # fmt: skip
TRANSIENT = (child.Killed, ConnectionError, TimeoutError)
"""The only errors worth another try. A person's mistake, a defect, and a stage that ran out of time are not."""
PROGRESS_EVERY = 5.0  # seconds between updates of a stage's progress artifact

_cpu = threading.Lock()
"""Without GPUs one body runs at a time: two on the same cores ruin each other."""


def is_transient(_task: Any, _run: Any, state: State) -> bool:
    """Whether Prefect should try a failed stage again."""
    try:
        state.result(raise_on_failure=True)
    except TRANSIENT:
        return not child.stopping.is_set()
    except BaseException:
        return False
    return False


@task(
    task_run_name="{name}",
    cache_policy=NO_CACHE,
    persist_result=False,
    retry_delay_seconds=[1, 10, 60],
    retry_condition_fn=is_transient,
)
def run_step(name: str, session: Session) -> Any:
    """Builds one stage, or finds it built. Returns a reference, never the thing."""
    work = session.work(name)
    planned = session.planned.get(name)
    forced = planned is not None and planned.why == "forced"
    stored = None if forced else find(session.home, work.kind, work.fingerprint)
    if stored:
        return _cached(session, work, stored)
    if child.stopping.is_set():
        raise child.Interrupted("stopped before it began")

    def waiting() -> None:
        session.observe(name, "waiting", "another process is building it")
        if child.stopping.is_set():
            raise child.Interrupted("stopped while waiting")

    try:
        with locked(session.home, work.fingerprint, waiting=waiting):
            stored = None if forced else find(session.home, work.kind, work.fingerprint)
            if stored:  # built by another while we waited
                return _cached(session, work, stored)
            if forced:
                shutil.rmtree(scratch_of(session.home, work.kind, work.fingerprint), ignore_errors=True)
            stored = _build(session, work)
    except child.Interrupted:
        session.observe(name, "failed", "stopped")
        raise
    except Exception as error:
        session.observe(name, "failed", explain(error))
        raise
    return reference(work, stored)


def explain(error: BaseException) -> str:
    """One line for the person."""
    if isinstance(error, (UserError, UnfitError, child.TimedOut, child.Killed, child.Interrupted)):
        return str(error)
    if isinstance(error, child.BodyFailed):
        return f"{error} (its log has the details)"
    return f"{type(error).__name__}: {error}".splitlines()[0]


def reference(work: Work, stored: Stored) -> dict[str, Any]:
    """What a task returns: where the artifact is and what was measured."""
    return {
        "fingerprint": work.fingerprint,
        "folder": str(stored.folder),
        "mlflow_run": stored.record.get("mlflow", {}).get("run"),
        "metrics": stored.record.get("metrics", {}),
    }


def _cached(session: Session, work: Work, stored: Stored) -> State:
    session.finished(work.name, stored)
    session.observe(work.name, "cached", stored.record.get("metrics", {}))
    return Completed(name="Cached", message=f"stored as {work.fingerprint[:16]}", data=reference(work, stored))


@contextmanager
def _devices(session: Session, name: str) -> Iterator[str]:
    """The GPUs of a stage, or the processor for itself."""
    count = session.study.execution.gpus
    with ExitStack() as held:
        if count:
            limit = concurrency(gpus.limit_name(), occupy=count, strict=True, raise_on_lease_renewal_failure=False)
            held.enter_context(limit)
        else:
            while not _cpu.acquire(timeout=0.2):
                if child.stopping.is_set():
                    raise child.Interrupted("stopped while waiting")
            held.callback(_cpu.release)

        def waiting() -> None:
            session.observe(name, "waiting", "the GPUs are taken")
            if child.stopping.is_set():
                raise child.Interrupted("stopped while waiting")

        yield held.enter_context(gpus.leased(count, waiting))


def _build(session: Session, work: Work) -> Stored:
    artifact = session.artifact(work.name)
    with _devices(session, work.name) as devices:
        session.observe(work.name, "started", None)
        run = session.tracker.start_child(
            f"{work.name} {work.fingerprint[:8]}",
            {**session.tags, "alignflow.stage": work.name, "alignflow.kind": work.kind,
             "alignflow.fingerprint": work.fingerprint, "prefect.task_run_id": _task_run_id()},
            {"kind": work.kind, **work.payload["spec"], **work.payload["facts"]},
        )  # fmt: skip
        status = "FAILED"
        try:
            session.check_leaves(work.name)
            with building(session.home, work.kind, work.fingerprint) as out:
                log = session.home / "logs" / session.study.name / f"{work.name}.log"
                request = child.Request(
                    BODIES[work.kind], artifact, out, scratch_of(session.home, work.kind, work.fingerprint),
                    session.study.execution, log, devices, (str(session.folder), *sys.path), _processes(session, work.kind),
                )  # fmt: skip
                timeout = session.study.execution.timeout
                relay = _Relay(session, work.name, run)
                result, elapsed = child.run_body(request, on_event=relay, timeout=seconds(timeout) if timeout else None)
                relay.end()
                session.add_body_time(elapsed)
                model = _model_entity(session, work, run)
                record = {
                    "payload": work.payload,
                    "inputs": [
                        {"slot": slot, "kind": session.nodes[i].kind, "fingerprint": session.nodes[i].fingerprint}
                        for slot, i in session.nodes[work.name].inputs
                    ],
                    "metrics": {**result.metrics, **dropped_rows(out)},
                    "provenance": provenance(session.study.execution.gpus, session.study.execution.threads)
                    | {"seconds": round(elapsed, 3), "finished": datetime.now(UTC).isoformat()},
                    "mlflow": {"run": run or None, "experiment": session.tracker.experiment_id, "model": model},
                }
                stored = publish(session.home, work.kind, work.fingerprint, out, record)
            session.finished(work.name, stored)
            session.remember()  # at once, so that no `gc` meanwhile takes it for forgotten
            _report(session, work, stored, run, elapsed)
            status = "FINISHED"
        except child.Interrupted:
            status = "KILLED"
            raise
        finally:
            session.tracker.finish(run, status)
            drop_if_empty(session.home, work.kind, work.fingerprint)
    session.observe(work.name, "done", (stored.record["metrics"], elapsed))
    return stored


def _processes(session: Session, kind: str) -> int:
    """How many processes train a stage of this kind together."""
    return session.study.execution.training_processes if kind in TRAINED and kind != "soup" else 1


def _task_run_id() -> str:
    context = TaskRunContext.get()
    return str(context.task_run.id) if context else ""


def _model_entity(session: Session, work: Work, run: str) -> str | None:
    """The MLflow model of a trained artifact, with edges from the models it was made of."""
    if work.kind not in TRAINED:
        return None
    return session.tracker.model_out(run, f"{session.study.name}-{work.kind}", {
        "alignflow.fingerprint": work.fingerprint, "alignflow.store": f"{work.kind}/{work.fingerprint[:16]}",
    })  # fmt: skip


def _report(session: Session, work: Work, stored: Stored, run: str, elapsed: float) -> None:
    """Metrics, small files, generations and lineage to MLflow."""
    tracker = session.tracker
    artifact = session.artifact(work.name)
    tracker.metrics(run, {**stored.record["metrics"], "seconds": elapsed})
    tracker.files(run, stored.folder)
    made_of: dict[str, list[str]] = {}
    for slot, name in session.nodes[work.name].inputs:
        below = session.artifact(name)
        if isinstance(below.entry, Data):
            source = below.entry.source
            context = "evaluation" if work.kind == "evaluate" else "training"
            tracker.dataset_in(run, name, below.fingerprint, source, context)
        elif isinstance(below.entry, Model):
            made_of.setdefault(slot, []).append(f"model {below.fingerprint[:16]}")
        elif (made := session.stored(name)) is not None:
            made_of.setdefault(slot, []).append(f"{below.entry.kind_name} {below.fingerprint[:16]}")
            model = made.record.get("mlflow", {}).get("model")
            if model:
                tracker.model_in(run, model)
            elif below.entry.kind_name in ("sample", "label"):
                tracker.dataset_in(run, name, below.fingerprint, str(made.folder), "training")
    if made_of:
        tracker.tag(run, {f"alignflow.input.{slot}": ", ".join(some) for slot, some in made_of.items()})
    if work.kind == "evaluate":
        evaluation = named(artifact)
        tracker.metrics(run, evaluation.metrics())
        tracker.table(run, list(generations(artifact, evaluation.policies, evaluation.rewards)), "generations.json")
    elif work.kind == "sample":
        rows = [
            {
                "prompt": row["prompt"][-1]["content"],
                "response": r["text"],
                "tokens": r["tokens"],
                "finished": r["finished"],
            }
            for row in read_lines(stored.folder / RESPONSES)
            for r in row["responses"]
        ]
        tracker.table(run, rows, "generations.json")


class _Relay:
    """Passes a body's reports on: to the watcher at once, to MLflow in batches, to a progress artifact now and then."""

    def __init__(self, session: Session, name: str, run: str):
        self.session, self.name, self.run = session, name, run
        self.artifact: Any = None
        self.updated = time.monotonic()

    def __call__(self, event: tuple[str, Any]) -> None:
        kind, content = event
        self.session.observe(self.name, kind, content)
        if kind == "metrics":
            step, values = content
            now = int(time.time() * 1000)
            self.session.tracker.metric_batch(self.run, [Metric(k, v, now, step) for k, v in values.items()])
        elif kind == "progress" and time.monotonic() - self.updated > PROGRESS_EVERY:
            self.updated = time.monotonic()
            done, total, what = content
            self._progress(100 * done / max(total, 1), what)

    def end(self) -> None:
        """Fills the bar, where there is one."""
        if self.artifact is not None:
            self._progress(100.0, "")

    def _progress(self, percent: float, what: str) -> None:
        try:
            if self.artifact is None:
                self.artifact = create_progress_artifact(percent, description=f"{self.name}: {what}")
            else:
                update_progress_artifact(self.artifact, percent)
        except Exception as error:  # a bar in the UI is not worth a stage
            self.session.observe(self.name, "note", f"no progress artifact: {error}")
