"""What comes first in a run that a worker has started: nobody has looked at its study since it was deployed or its form filled in."""

from __future__ import annotations

import os
from datetime import UTC, datetime
from pathlib import Path

from prefect.client.orchestration import get_client
from prefect.client.schemas.filters import (
    FlowRunFilter,
    FlowRunFilterDeploymentId,
    FlowRunFilterExpectedStartTime,
    FlowRunFilterId,
    FlowRunFilterState,
    FlowRunFilterStateType,
)
from prefect.client.schemas.objects import FlowRun, StateType
from prefect.states import Cancelled

from flows import ready, silence
from flows.server import die_with_parent
from specs.environment import environment_problems
from specs.problems import Mark, Problem, SpecError
from specs.study import Study
from tasks.view import View


def take_over(run: FlowRun) -> None:
    """Cancels what else the schedule has due: after days without a worker one run makes up for them all, and it reads the
    data as they are now."""
    if not run.auto_scheduled or run.deployment_id is None:
        return
    due = FlowRunFilter(
        id=FlowRunFilterId(not_any_=[run.id]),
        deployment_id=FlowRunFilterDeploymentId(any_=[run.deployment_id]),
        state=FlowRunFilterState(type=FlowRunFilterStateType(any_=[StateType.SCHEDULED])),
        expected_start_time=FlowRunFilterExpectedStartTime(before_=datetime.now(UTC)),
    )
    with get_client(sync_client=True) as client:
        for other in client.read_flow_runs(flow_run_filter=due):
            if other.auto_scheduled:
                client.set_flow_run_state(other.id, Cancelled(message=f"{run.name}, which is at work, makes up for it"))


def checked(study: Study, home: Path, folder: Path, *, offline: bool, forced: frozenset[str]) -> View:
    """The study as it is now, looked at as `alignflow run` looks at its own. Raises `SpecError` with all that is wrong, and
    `UnfitError`."""
    die_with_parent()  # a run without its worker would go on unseen
    silence.apply(offline=offline)
    _refuse(list(environment_problems(study, os.environ)))  # without them nothing else can be looked at
    view = View.of(study, home, folder, offline=offline, forced=forced)
    _refuse(view.problems())
    ready.require(view)
    return view


def _refuse(problems: list[tuple[tuple[str | int, ...], str]]) -> None:
    if problems:
        raise SpecError([Problem(Mark("the study"), path, text) for path, text in problems])
