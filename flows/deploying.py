"""`alignflow deploy`: a study as a Prefect deployment, run by schedule, from its form, or by its interface. Importing it
takes the Prefect server for granted that PREFECT_API_URL names.

A deployment holds the validated study itself, so what runs at night is what was read by day. It never overlaps with itself: where
a worker has a place for it while another run of it is going, it is cancelled and not queued, for the run after it finds the
same rows and the same store, and queued runs would pile up wherever one takes longer than its interval.
"""

from __future__ import annotations

import json
import os
import re
from collections.abc import Sequence
from datetime import timedelta
from pathlib import Path
from typing import Any

from prefect.client.orchestration import SyncPrefectClient, get_client
from prefect.client.schemas.actions import DeploymentScheduleCreate
from prefect.client.schemas.filters import (
    DeploymentFilter,
    DeploymentFilterId,
    FlowFilter,
    FlowFilterName,
    FlowRunFilter,
    FlowRunFilterState,
    FlowRunFilterStateType,
)
from prefect.client.schemas.objects import ConcurrencyLimitStrategy, ConcurrencyOptions, StateType
from prefect.client.schemas.responses import DeploymentResponse
from prefect.client.schemas.schedules import CronSchedule, IntervalSchedule, RRuleSchedule
from prefect.client.schemas.sorting import FlowRunSort
from prefect.exceptions import ObjectNotFound, PrefectHTTPStatusError
from prefect.utilities.callables import parameter_schema
from pydantic import ValidationError

from flows import form, pool, server
from flows.align import align
from registry.home import make_home
from specs.base import duration, seconds
from specs.load import Loaded, say
from specs.plan import changes
from specs.problems import Mark, Problem, SpecError, UnfitError, UserError, did_you_mean, show_path
from specs.schedule import Schedule
from tasks.view import View

ENTRYPOINT = "flows.align.align"
_OWN_BEGINNING = re.compile(r"^DTSTART:(20200101T000000|\d{8}T\d{6}(?=\n.*FREQ=(MINUTE|SECOND)LY))\n", re.IGNORECASE)
"""What Prefect writes in front of a rule that has no beginning: of one that is often due a recent one."""


def deploy(loaded: Loaded, schedule: Schedule | None, *, active: bool, offline: bool) -> str:
    """Makes or remakes the deployment, and says what is other than before. Raises `SpecError` and `UnfitError`."""
    study, folder = loaded.study, loaded.path.resolve().parent
    home = make_home()
    view = View.of(study, home, folder, offline=offline)
    if problems := [loaded.problem(path, text) for path, text in view.problems()]:
        raise SpecError(problems)
    parameters = {"study": form.parameters(study), "folder": str(folder), "offline": offline}
    with get_client(sync_client=True) as client:
        pool.make(client)
        before = _existing(client, study.name)
        try:
            schedules = _schedules(schedule, before, active)
        except ValidationError as error:
            assert schedule is not None
            raise SpecError(_refusals(loaded, schedule, error)) from None
        try:
            made = client.create_deployment(
                flow_id=client.create_flow(align),
                name=study.name,
                entrypoint=ENTRYPOINT,
                description=f"The study {study.name}, whose results lie in {home}.",
                tags=["alignflow"],
                parameters=parameters,
                parameter_openapi_schema=form.schema(study, _others()),
                enforce_parameter_schema=True,
                schedules=schedules,
                work_pool_name=pool.NAME,
                concurrency_limit=1,
                concurrency_options=ConcurrencyOptions(collision_strategy=ConcurrencyLimitStrategy.CANCEL_NEW),
                job_variables={"env": {"ALIGNFLOW_HOME": str(home)}},
            )
        except PrefectHTTPStatusError as error:
            raise UnfitError(f"Prefect's server refuses the deployment: {error.response.text[:500]}") from None
        told = _difference(before, home, parameters, schedules) if before else ["deployed"]
        return "\n".join([
            f"{align.name}/{study.name}: {told[0]}", *(f"  {line}" for line in told[1:]),
            *_what_next(client, made, schedules, has_worker=bool(server.of_up(home))),
        ])  # fmt: skip


def listed() -> str:
    """Every deployment of a study on the server, its schedule and its next and last run."""
    with get_client(sync_client=True) as client:
        return "\n".join(_line(client, each) for each in _all(client)) or "no study is deployed"


def remove(name: str) -> str:
    """Takes a deployment away; what its runs made stays. Raises `UserError` where there is none of that name."""
    with get_client(sync_client=True) as client:
        names = {each.name: each for each in _all(client)}
        wanted = name.removeprefix(f"{align.name}/")
        if wanted not in names:
            raise UserError(f"no study `{wanted}` is deployed{did_you_mean(wanted, names)}")
        client.delete_deployment(names[wanted].id)
    return f"{align.name}/{wanted}: removed; what its runs made stays"


def _all(client: SyncPrefectClient) -> list[DeploymentResponse]:
    only = FlowFilter(name=FlowFilterName(any_=[align.name]))
    found: list[DeploymentResponse] = []
    while page := client.read_deployments(flow_filter=only, limit=200, offset=len(found)):
        found += page
    return sorted(found, key=lambda each: each.name)


def _existing(client: SyncPrefectClient, name: str) -> DeploymentResponse | None:
    try:
        return client.read_deployment_by_name(f"{align.name}/{name}")
    except ObjectNotFound:
        return None


def _others() -> dict[str, Any]:
    """The flow's parameters beside the study."""
    properties = parameter_schema(align).model_dump_for_openapi()["properties"]
    return {key: shown for key, shown in properties.items() if key != "study"}


def _schedules(
    schedule: Schedule | None, before: DeploymentResponse | None, active: bool
) -> list[DeploymentScheduleCreate]:
    """What is to be scheduled. A schedule that says what it said keeps its beginning and whether it is on."""
    if schedule is None:
        return []
    wanted = _prefect_schedule(schedule)
    earlier = list(before.schedules) if before else []
    written = "active" in schedule.model_fields_set  # then it says so itself; else it stays as it was
    on = active or (schedule.active if written else any(each.active for each in earlier))
    same = next((each.schedule for each in earlier if _words(each.schedule) == _words(wanted)), wanted)
    return [DeploymentScheduleCreate(schedule=same, active=on)]


def _prefect_schedule(schedule: Schedule) -> Any:
    if schedule.cron is not None:
        return CronSchedule(cron=schedule.cron, timezone=schedule.timezone)
    if schedule.interval is not None:
        return IntervalSchedule(interval=timedelta(seconds=seconds(schedule.interval)), timezone=schedule.timezone)
    return RRuleSchedule(rrule=schedule.rrule or "", timezone=schedule.timezone)


def _refusals(loaded: Loaded, schedule: Schedule, error: ValidationError) -> list[Problem]:
    """What Prefect has against a schedule, each at the option or the place in the file that it was written in."""
    problems = []
    for each in error.errors(include_url=False):
        name = str(next(iter(each["loc"]), "timezone"))  # of an interval Prefect looks at that alone, and says no name
        text, written = f"Prefect refuses it: {' '.join(say(each).split())}", loaded.study.schedule
        if written is not None and getattr(written, name) == getattr(schedule, name):
            problems.append(loaded.problem(("schedule", name), text))
        else:
            problems.append(Problem(Mark(f"--{name}"), (), text))
    return problems


def _words(schedule: Any) -> str:
    if isinstance(schedule, CronSchedule):
        what = f"cron {schedule.cron}"
    elif isinstance(schedule, IntervalSchedule):
        what = f"every {duration(round(schedule.interval.total_seconds()))}"
    else:
        what = f"rrule {' '.join(_OWN_BEGINNING.sub('', schedule.rrule).split()).removeprefix('RRULE:')}"
    return f"{what}, {schedule.timezone}"


def _state(schedules: Sequence[Any]) -> str:
    return "; ".join(f"{_words(each.schedule)} ({'on' if each.active else 'off'})" for each in schedules) or "none"


def _difference(
    before: DeploymentResponse, home: Path, parameters: dict[str, Any], schedules: Sequence[Any]
) -> list[str]:
    lines = []
    old_home = (before.job_variables.get("env") or {}).get("ALIGNFLOW_HOME")
    if old_home != str(home):  # whose runs know nothing of what the other one holds
        lines.append(f"home: {old_home} -> {home}")
    for path, old, new in changes(before.parameters, parameters):
        at = path[1:] if path[0] == "study" else path
        lines.append(f"{show_path(at)}: {_shown(old)} -> {_shown(new)}")
    if (old_words := _state(before.schedules)) != (new_words := _state(schedules)):
        lines.append(f"schedule: {old_words} -> {new_words}")
    return ["changed", *lines] if lines else ["as it was"]


def _shown(value: Any) -> str:
    text = json.dumps(value, ensure_ascii=False)
    return text if len(text) <= 80 else f"{text[:77]}..."


def _what_next(client: SyncPrefectClient, made: Any, schedules: Sequence[Any], *, has_worker: bool) -> list[str]:
    lines = [f"schedule: {_state(schedules)}"]
    if schedules and not schedules[0].active:
        lines.append("switch it on with `--active`, or on its page")
    pages = os.environ.get("PREFECT_UI_URL") or server.page(os.environ["PREFECT_API_URL"])
    lines.append(f"page: {pages}/deployments/deployment/{made}")
    if not has_worker and not pool.is_served(client):  # that of `alignflow up` may still be starting
        lines.append(f"no worker serves the pool `{pool.NAME}`: `alignflow up` starts one")
    return lines


def _line(client: SyncPrefectClient, deployment: DeploymentResponse) -> str:
    only = DeploymentFilter(id=DeploymentFilterId(any_=[deployment.id]))

    def first(sort: FlowRunSort, *types: StateType) -> Any:
        state = FlowRunFilter(state=FlowRunFilterState(type=FlowRunFilterStateType(any_=list(types))))
        return next(
            iter(client.read_flow_runs(deployment_filter=only, flow_run_filter=state, sort=sort, limit=1)), None
        )

    following = first(FlowRunSort.EXPECTED_START_TIME_ASC, StateType.SCHEDULED)
    over = (StateType.COMPLETED, StateType.FAILED, StateType.CRASHED, StateType.CANCELLED)
    last = first(FlowRunSort.END_TIME_DESC, *over)
    told = [_state(deployment.schedules)]
    if following:
        told.append(f"next {following.expected_start_time:%Y-%m-%d %H:%M:%S} UTC")
    if last and last.state:
        told.append(f"last {last.state.name.lower()} {last.end_time:%Y-%m-%d %H:%M:%S} UTC")
    return f"{deployment.name}  {', '.join(told)}"
