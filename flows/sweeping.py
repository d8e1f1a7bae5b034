"""What dead runs have left marked as running is set right, in MLflow and in Prefect, when the next run begins and when
`alignflow up` does.

A process that is killed tells nobody. Prefect's own remedy is to take a long silence for death, which is wrong about some of the
living, late about the rest, and sees deployed runs only; a lock that the kernel frees is never wrong on its host.
"""

from __future__ import annotations

import os
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any
from uuid import UUID

from mlflow.tracking import MlflowClient
from prefect import tags
from prefect.client.orchestration import SyncPrefectClient, get_client
from prefect.client.schemas.filters import (
    FlowFilter,
    FlowFilterName,
    FlowRunFilter,
    FlowRunFilterId,
    FlowRunFilterState,
    FlowRunFilterStateType,
    TaskRunFilter,
    TaskRunFilterState,
    TaskRunFilterStateType,
)
from prefect.client.schemas.objects import FlowRun, StateType
from prefect.exceptions import ObjectNotFound
from prefect.states import Crashed

from flows import server
from registry.claims import living, orphans
from specs.problems import without_password
from tasks.tracking import end_runs

FLOW = "align"
OPEN = [StateType.RUNNING, StateType.PENDING, StateType.PAUSED, StateType.CANCELLING]
UP = "up"
"""What a note calls the Prefect server of `alignflow up`, which may come back on another port."""
GONE = "its process is gone; the next run goes on from what is stored"


def of_home(home: Path) -> AbstractContextManager[Any]:
    """Within it a flow run that begins bears the mark of its home: others may use the same server."""
    return tags(_mark(home))


def _mark(home: Path | str) -> str:
    return f"home:{home}"


def prefect_place(home: Path, url: str) -> str | None:
    """How a note names a Prefect server; None where it ends with the run."""
    if server.is_temporary(url):
        return None
    return UP if server.of_up(home).get("prefect") == url else without_password(url)


def begun(flow_run: str, prefect: str | None, *, is_deployed: bool) -> dict[str, Any]:
    """What a run claims to have open before it has looked at its study: a Prefect flow run. Of a deployed one also the process
    that is to be told when its worker stops."""
    made: dict[str, Any] = {"flow_run": flow_run, "status": "KILLED"}
    made |= {"prefect": prefect} if prefect else {}
    return made | ({"process": os.getpid()} if is_deployed else {})


def note(flow_run: str, prefect: str | None, uri: str, experiment: str, *, is_deployed: bool) -> dict[str, Any]:
    """The same once it works: the MLflow runs that bear its number too."""
    return begun(flow_run, prefect, is_deployed=is_deployed) | {"mlflow": {"uri": uri, "experiment": experiment}}


def sweep(home: Path, prefect: str | None, mlflow: MlflowClient, uri: str, own: str = "") -> None:
    """Closes what dead runs of this home left open on these two servers. What lies elsewhere is left until a run goes there.
    `own` is the flow run that sweeps: begun again after its process was killed, it finds what it claimed before."""
    for claim in orphans(home):
        left = dict(claim.note)
        if left.get("mlflow", {}).get("uri") == uri:
            end_runs(mlflow, left["mlflow"]["experiment"], left["flow_run"], left["status"])
            del left["mlflow"]
        if left.get("prefect") == prefect and prefect is not None:
            if left["flow_run"] != own:
                _crash(FlowRunFilter(id=FlowRunFilterId(any_=[UUID(left["flow_run"])])))
            del left["prefect"]
        claim.end(left if left.keys() & {"mlflow", "prefect"} else None)


def sweep_server(home: Path, since: float) -> None:
    """Closes every run of this home that began before its server did (`since`, seconds of the epoch), but those that hold a
    claim: no other can be alive."""
    alive = [UUID(each["flow_run"]) for each in living(home)]
    flows = FlowFilter(name=FlowFilterName(any_=[FLOW, "promote"]))
    is_open = FlowRunFilterState(type=FlowRunFilterStateType(any_=OPEN))
    which = FlowRunFilter(id=FlowRunFilterId(not_any_=alive), state=is_open)
    with get_client(sync_client=True) as client:
        gone = [
            run.id
            for run in client.read_flow_runs(flow_filter=flows, flow_run_filter=which)
            if (run.created is None or run.created.timestamp() < since) and _mark(home) in _marks(client, run)
        ]
    _crash(FlowRunFilter(id=FlowRunFilterId(any_=gone)))


def _marks(client: SyncPrefectClient, run: FlowRun) -> list[str]:
    """A deployed run belongs to the home that its deployment names."""
    if run.deployment_id is None:
        return run.tags
    try:
        variables = client.read_deployment(run.deployment_id).job_variables
    except ObjectNotFound:  # it was removed
        return []
    return [_mark(variables.get("env", {}).get("ALIGNFLOW_HOME"))]


def _crash(which: FlowRunFilter) -> None:
    """Closes runs and their stages, for a run may have told of its own death and not of theirs."""
    tasks = TaskRunFilter(state=TaskRunFilterState(type=TaskRunFilterStateType(any_=OPEN)))
    with get_client(sync_client=True) as client:
        for run in client.read_flow_runs(flow_run_filter=which):
            mine = FlowRunFilter(id=FlowRunFilterId(any_=[run.id]))
            for task in client.read_task_runs(flow_run_filter=mine, task_run_filter=tasks):
                client.set_task_run_state(task.id, Crashed(message=GONE), force=True)
            if run.state_type in OPEN:
                client.set_flow_run_state(run.id, Crashed(message=GONE), force=True)
