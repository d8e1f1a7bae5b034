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
from contextlib import AbstractContextManager, ExitStack, contextmanager
from typing import Any

from mlflow.entities import Metric
from prefect import task
from prefect.artifacts import create_progress_artifact, update_progress_artifact
from prefect.cache_policies import NO_CACHE
from prefect.concurrency.sync import concurrency
from prefect.context import TaskRunContext
from prefect.states import Completed, State

from registry.store import Stored, building, drop_if_empty, find, locked, publish, scratch_of
from specs.base import seconds
from specs.problems import UnfitError, UserError
from tasks import child, gpus
from tasks.bodies import BODIES
from tasks.experience import Experience
from tasks.record import Record
from tasks.session import Session
from tasks.telling import TRAINED, model_entity, tell
from tasks.view import Work

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
            if forced and _attempt() == 1:  # what a killed attempt left is of this build
                shutil.rmtree(scratch_of(session.home, work.kind, work.fingerprint), ignore_errors=True)
            stored = session.fetch(name) if session.nodes[name].held_by else _build(session, work)
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

    def waiting() -> None:
        if count:
            session.observe(name, "waiting", "the GPUs are taken")
        if child.stopping.is_set():
            raise child.Interrupted("stopped while waiting")

    with ExitStack() as held:
        if not count:
            while not _cpu.acquire(timeout=0.2):
                waiting()
            held.callback(_cpu.release)
        devices = held.enter_context(gpus.leased(count, waiting))
        while session.has_slots:
            try:
                held.enter_context(_slots(count))
                break
            except TimeoutError:  # a lock cannot see those of another container, say
                waiting()
        yield devices


def _slots(count: int) -> AbstractContextManager[None]:
    return concurrency(
        gpus.limit_name(), occupy=count, strict=True, timeout_seconds=2, raise_on_lease_renewal_failure=False
    )


def _build(session: Session, work: Work) -> Stored:
    artifact = session.artifact(work.name)
    scratch = scratch_of(session.home, work.kind, work.fingerprint)
    with _devices(session, work.name) as devices:
        session.observe(work.name, "started", None)
        begun = Record(session, work, scratch, _attempt())
        run = session.tracker.start_child(
            f"{work.name} {work.fingerprint[:8]}",
            {**session.tags, "alignflow.stage": work.name, "alignflow.kind": work.kind,
             "alignflow.fingerprint": work.fingerprint, "prefect.task_run_id": _task_run_id()},
            {"kind": work.kind, **work.payload["spec"], **work.payload["facts"]},
        )  # fmt: skip
        status = "FAILED"
        try:
            session.check_leaves(work.name)
            foreseen = Experience(session).to_record(work.name)
            with building(session.home, work.kind, work.fingerprint) as out:
                log = session.home / "logs" / session.study.name / f"{work.name}.log"
                request = child.Request(
                    BODIES[work.kind], artifact, out, scratch, session.study.execution, log, devices,
                    (str(session.folder), *sys.path), _processes(session, work.kind),
                )  # fmt: skip
                timeout = session.study.execution.timeout
                relay = _Relay(session, work.name, run)
                result, elapsed = child.run_body(request, on_event=relay, timeout=seconds(timeout) if timeout else None)
                relay.end()
                session.add_body_time(elapsed)
                model = model_entity(session, work, run)
                record = begun.end(result, out, elapsed, foreseen) | {
                    "mlflow": {"run": run or None, "experiment": session.tracker.experiment_id, "model": model}
                }
                stored = publish(session.home, work.kind, work.fingerprint, out, record)
            session.finished(work.name, stored)
            session.remember()  # at once, so that no `gc` meanwhile takes it for forgotten
            tell(session, work, stored, run, elapsed)
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


def _attempt() -> int:
    """1, or more where Prefect tries again."""
    context = TaskRunContext.get()
    return context.task_run.run_count if context else 1


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
