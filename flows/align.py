"""The align flow: one flow run is one run of a study.

It submits the plan in order and waits; what a stage is and does is the business of `run_step`.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from prefect import flow
from prefect.artifacts import create_link_artifact, create_markdown_artifact, create_table_artifact
from prefect.client.orchestration import get_client
from prefect.client.schemas.objects import FlowRun
from prefect.context import FlowRunContext, TagsContext
from prefect.futures import PrefectFuture, wait
from prefect.settings import PREFECT_API_URL
from prefect.states import Cancelled, Completed, Failed, State
from prefect.task_runners import ThreadPoolTaskRunner
from prefect.utilities.annotations import quote

from flows import deployed, past_runs, pool, server, sweeping
from flows.expectations import expectations
from flows.report import write_report
from flows.summary import evaluation_markdown
from flows.wording import measured
from registry.claims import claim
from registry.home import make_home
from specs.evaluation import Evaluate
from specs.problems import SpecError, UnfitError, UserError
from specs.study import Study
from tasks import child
from tasks.continuing import complete
from tasks.evaluation_table import named
from tasks.observer import observer
from tasks.places import tracking_place
from tasks.session import Session
from tasks.step import explain, run_step
from tasks.tracking import Tracker
from tasks.view import View


@flow(
    name=sweeping.FLOW,
    flow_run_name="{study.name}",
    task_runner=ThreadPoolTaskRunner(max_workers=8),  # type: ignore[arg-type]  # its type is a runner of any result's
    validate_parameters=True,
)
def align(study: Study, folder: str = ".", offline: bool = False, force: list[str] | None = None) -> Any:
    """Runs a study. `folder` is where its Python rewards lie; `force` names stages to build anew."""
    context = FlowRunContext.get()
    assert context is not None and context.flow_run is not None
    deployed.take_over(context.flow_run)
    try:
        session = open_session(context.flow_run, study, Path(folder), offline, frozenset(force or ()))
    except (SpecError, UnfitError, UserError) as error:
        if context.flow_run.deployment_id is None:
            raise  # to the command line, which tells each of them in its own way
        return Failed(message=str(error))
    futures: dict[str, PrefectFuture[Any]] = {}
    step: Any = run_step.with_options(retries=study.execution.retries)
    fetched = session.to_fetch()
    for name in (*fetched, *session.planned):
        inputs = {i for _, i in session.nodes[name].inputs} | (
            session.below(name).intersection(fetched) if fetched else set()
        )
        upstream = [futures[i] for i in inputs if i in futures]
        with TagsContext(current_tags=set()):  # for each tag of a stage Prefect would ask for a limit
            futures[name] = step.submit(name, quote(session), wait_for=upstream)
    try:
        wait(list(futures.values()))
    except BaseException:  # SIGTERM reaches this thread as one: the stages' processes are to end too
        child.stopping.set()
        session.tracker.finish(session.tracker.parent, "KILLED")
        raise
    try:
        return close_session(session, {name: future.state for name, future in futures.items()})
    except BaseException:  # a report that cannot be drawn, a server that is gone
        session.tracker.finish(session.tracker.parent, "FAILED")
        raise


def open_session(run: FlowRun, study: Study, folder: Path, offline: bool, force: frozenset[str]) -> Session:
    """Plans, closes what dead runs left open, claims and opens the MLflow parent run, and makes the GPU limit where one is
    needed. A deployed run is looked at first as `alignflow run` looks at its own."""
    home = make_home()
    place = sweeping.prefect_place(home, str(PREFECT_API_URL.value()))
    # Under a name of its own: under the run's there may be what it claimed before its process was killed.
    begun = claim(
        home, f"{run.id}-begun", sweeping.begun(str(run.id), place, is_deployed=run.deployment_id is not None)
    )
    try:
        return _opened(run, study, folder, offline, force, home, place)
    finally:
        begun.end()


def _opened(
    run: FlowRun, study: Study, folder: Path, offline: bool, force: frozenset[str], home: Path, prefect: str | None
) -> Session:
    flow_run, is_deployed = str(run.id), run.deployment_id is not None
    if is_deployed:
        view = deployed.checked(study, home, folder, offline=offline, forced=force)
    else:
        view = View.of(study, home, folder, offline=offline, forced=force)
    uri, artifacts = tracking_place(study, home)
    server.lead_to_pages(home, uri)
    tracker = Tracker(uri, study.tracking.experiment or study.name, artifacts)
    sweeping.sweep(home, prefect, tracker.client, tracker.uri, own=flow_run)
    has_slots = study.execution.gpus > 0 and prefect is not None
    if has_slots:
        with get_client(sync_client=True) as client:
            pool.limit_gpus(client)
    tags = {"alignflow.study": study.name, "prefect.flow_run_id": flow_run}
    note = sweeping.note(flow_run, prefect, tracker.uri, tracker.experiment_id, is_deployed=is_deployed)
    claimed = claim(home, flow_run, note)
    spec = study.model_dump(mode="json", exclude_unset=True)
    tracker.start_parent(study.name, tags, spec)
    session = Session(
        **vars(view), tracker=tracker, tags=tags, observe=observer.get(), claim=claimed, has_slots=has_slots
    )
    past_runs.begin(session)
    session.remember()  # what is stored already is in use from now on
    return session


def close_session(session: Session, states: dict[str, State | None]) -> Any:
    """Report, artifacts and the flow's final state."""
    session.remember()
    failed = {n: _reason(s) for n, s in states.items() if s is None or not s.is_completed()}
    missed = [] if failed else [str(expected) for expected in expectations(session) if not expected.met]
    report = write_report(session)
    tracker = session.tracker
    cached = {n for n, s in states.items() if s is not None and s.name == "Cached"}
    for name in sorted(cached):
        stored = session.stored(name)
        run = stored.record.get("mlflow", {}).get("run") if stored else None
        tracker.tag(tracker.parent, {f"alignflow.cached.{_tag(name)}": str(run)})
    if report:
        tracker.file(tracker.parent, report.path)
        for name, figures in report.figures.items():
            stored = session.stored(name)
            run = stored.record["mlflow"]["run"] if stored else None
            # One who was killed between the evaluation and the report has left them to whoever comes next.
            if run and (name not in cached or not tracker.holds(run, "figures")):
                for figure in figures:
                    tracker.file(run, figure, "figures")
    status = "KILLED" if child.stopping.is_set() else "FAILED" if failed else "FINISHED"
    tracker.finish(tracker.parent, status)
    tracker.finish_strays(session.tags["prefect.flow_run_id"])
    _artifacts(session, states, failed, missed)
    ended = {n: "cached" if n in cached else "failed" if n in failed else "done" for n in states}
    past_runs.end(session, ended)
    outcome = {
        "study": session.study.name,
        "stages": ended,
        "failed": failed,
        "missed": missed,
        "report": str(report.path) if report else None,
        "mlflow": {"uri": tracker.uri, "run": tracker.parent, "url": tracker.url(tracker.parent)},
        "untracked": tracker.lost,
        "body_seconds": round(session.body_seconds, 3),
    }
    if not failed and not child.stopping.is_set():
        complete(session.study, session.home, session.nodes)
    untold = {key: value for key, value in session.claim.note.items() if key != "prefect"}
    session.claim.end(untold | {"status": status} if tracker.untold else None)
    session.observe("", "outcome", outcome)
    if child.stopping.is_set():
        return Cancelled(message="stopped; finished stages are kept")
    if failed:
        return Failed(message="; ".join(f"{n}: {why}" for n, why in failed.items()))
    if missed:
        return Completed(name="Missed", message="; ".join(missed), data=outcome)
    return Completed(message=f"{len(cached)} of {len(states)} stages were stored already", data=outcome)


def _reason(state: State | None) -> str:
    if state is None or state.name == "NotReady":
        return "an input failed"
    try:
        state.result(raise_on_failure=True)
    except BaseException as error:
        return explain(error)
    return state.message or state.name or "failed"


def _tag(name: str) -> str:
    return name.replace("[", "-").replace("=", "-").replace(",", "-").rstrip("]")


def _artifacts(session: Session, states: dict[str, State | None], failed: dict[str, str], missed: list[str]) -> None:
    """A table of the stages, a report in Markdown, and the way to MLflow, on the run's page."""
    rows = []
    for name in states:
        stored = session.stored(name)
        record = stored.record if stored else {}
        rows.append({
            "stage": name,
            "state": "failed" if name in failed else getattr(states[name], "name", "?"),
            "fingerprint": session.work(name).fingerprint[:16],
            "seconds": record.get("provenance", {}).get("seconds"),
            "result": failed.get(name) or measured(record.get("metrics", {})),
        })  # fmt: skip
    tables = [
        f"## {name}\n\n{evaluation_markdown(named(session.artifact(name)))}"
        for name, entry in session.study.stages.items()
        if isinstance(entry, Evaluate) and session.stored(name)
    ]
    lines = [f"# {session.study.name}", *(f"- **missed**: {m}" for m in missed)]
    lines += [f"- **failed**: {n}: {why}" for n, why in failed.items()]
    url = session.tracker.url(session.tracker.parent)
    create_table_artifact(rows, key="stages", description=f"The stages of {session.study.name}")
    create_markdown_artifact("\n".join([*lines, "", *tables]), key="report", description="What the study found")
    create_link_artifact(url, link_text="the run in MLflow", key="mlflow", description=_how_to_see(session))


def _how_to_see(session: Session) -> str:
    if session.tracker.uri.startswith("http"):
        return "The run in MLflow"
    return f"The run in MLflow, once this runs: mlflow ui --backend-store-uri {session.tracker.uri}"
