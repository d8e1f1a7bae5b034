"""The promote flow: a policy of a past run becomes a version of a registered model, and an alias means it.

It holds no GPU, so it may wait for a person: gates first (`tasks.gates`), then the question where one is asked, then the registry
(`tasks.registering`), all of it or nothing.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Mapping
from contextlib import suppress
from typing import Any, Literal

from prefect import flow, task
from prefect.artifacts import create_link_artifact, create_markdown_artifact
from prefect.cache_policies import NO_CACHE
from prefect.client.orchestration import get_client
from prefect.client.schemas.objects import FlowRun
from prefect.context import FlowRunContext
from prefect.exceptions import FlowPauseTimeout
from prefect.flow_runs import apause_flow_run
from prefect.input import RunInput
from prefect.settings import PREFECT_API_URL
from prefect.states import Cancelled, Completed
from prefect.utilities.annotations import quote
from pydantic import Field, ValidationError, field_validator

from flows import server, sweeping
from flows.candidate import Candidate, candidate
from registry.claims import claim
from registry.home import make_home
from specs.base import seconds
from tasks.observer import observer
from tasks.places import registry_place
from tasks.registering import Registered, meant, register
from tasks.tracking import Tracker

POLL = 2
"""Seconds between two looks at whether the person has decided."""
CANCELLED = "it was cancelled in the Prefect UI"


class Decision(RunInput):
    """What a person is asked in the Prefect UI."""

    decision: Literal["promote", "refuse"] = Field(description="Whether the alias is to mean this policy from now on.")
    name: str = Field(description="Who decides. It is kept with the version.")

    @field_validator("name")
    @classmethod
    def _says_who(cls, name: str) -> str:
        if not name.strip():
            raise ValueError("say who decides")
        return name.strip()


@flow(name="promote", flow_run_name="{stage} as {alias}", validate_parameters=True)
def promote(
    run: str,
    stage: str,
    alias: str,
    name: str | None = None,
    expect: list[str] | None = None,
    ungated: bool = False,
    approve: bool = False,
    wait: str = "1d",
) -> Any:
    """Promotes `stage` of a past run (its id, or a study's name for its last run). `approve` asks a person, for at most `wait`."""
    context = FlowRunContext.get()
    assert context is not None and context.flow_run is not None
    home, flow_run = make_home(), str(context.flow_run.id)
    place = sweeping.prefect_place(home, str(PREFECT_API_URL.value()))
    claimed = claim(home, flow_run, sweeping.begun(flow_run, place, is_deployed=False))
    chosen = candidate(run, stage, alias, name, expect or [], ungated=ungated)
    ended = _promoted(chosen, context.flow_run, place, seconds(wait) if approve else None)
    claimed.end()  # not where it fails, for Prefect's server may not hear of it
    return ended


def _promoted(chosen: Candidate, run: FlowRun, place: str | None, patience: float | None) -> Any:
    """What became of it. A person is asked where there is patience for one."""
    study, home, flow_run = chosen.view.study, chosen.view.home, str(run.id)
    uri, artifacts = registry_place(study, home)
    server.lead_to_pages(home, uri)
    tracker = Tracker(uri, study.tracking.experiment or study.name, artifacts)
    sweeping.sweep(home, place, tracker.client, tracker.uri, own=flow_run)
    create_markdown_artifact(chosen.description(), key="candidate", description=f"What is known of {chosen.stage}")
    if chosen.missed:
        return _refused(chosen, chosen.missed)
    tags = {**chosen.tags(), "prefect.flow_run_id": flow_run}
    if patience is not None:
        observer.get()("", "waiting", flow_run)
        decided = _ask(chosen, run, _meaning(tracker, chosen), patience)
        if isinstance(decided, str):
            return _refused(chosen, [decided])
        tags["alignflow.approved_by"] = decided.name
    registered: Registered = _register(quote(tracker), quote(chosen), tags)  # type: ignore[call-overload]  # quoted values
    page = f"{tracker.url(tracker.parent).split('/#/')[0]}/#/models/{registered.name}/versions/{registered.version}"
    with suppress(Exception):  # the alias has moved: a page without its link does not undo that
        create_link_artifact(page, link_text=f"{registered.name}, version {registered.version}", key="version")
    outcome = _outcome(chosen) | {
        "version": registered.version, "before": registered.before, "is_new": registered.is_new, "page": page,
        "approved_by": tags.get("alignflow.approved_by"),
    }  # fmt: skip
    observer.get()("", "outcome", outcome)
    return Completed(name="Promoted", message=str(registered), data=outcome)


@task(name="register", cache_policy=NO_CACHE, persist_result=False)
def _register(tracker: Tracker, chosen: Candidate, tags: Mapping[str, str]) -> Registered:
    """The version and the alias, in MLflow."""
    chosen.past.stored(chosen.stage)  # a person may have taken a day
    return register(tracker, chosen.view, chosen.stage, chosen.name, chosen.alias, tags, chosen.description())


def _meaning(tracker: Tracker, chosen: Candidate) -> str:
    """What the alias means now, for the person who is to replace it."""
    now = meant(tracker, chosen.name, chosen.alias)
    if now is None:
        return f"`{chosen.name}@{chosen.alias}` means nothing yet."
    of = " of ".join(f"`{now.tags[f'alignflow.{k}']}`" for k in ("stage", "study") if f"alignflow.{k}" in now.tags)
    return f"`{chosen.name}@{chosen.alias}` means version {now.version}{f', {of}' if of else ''} now."


def _ask(chosen: Candidate, run: FlowRun, now: str, patience: float) -> Decision | str:
    """What a person decides in the Prefect UI, or why it is not to be promoted. An answer that is none is asked for again."""
    deadline, told = time.monotonic() + patience, ""
    while True:
        text = f"{told}{now}\n\n{chosen.description()}"
        left = max(1, round(deadline - time.monotonic()))
        try:
            form = Decision.with_initial_data(description=text)
            given = asyncio.run(_given(form, left, run))
        except ValidationError as error:
            told = f"**{error.errors()[0]['msg'].removeprefix('Value error, ')}**\n\n"
        except FlowPauseTimeout:
            return "nobody decided in time"
        else:
            if given is None:
                return CANCELLED
            return given if given.decision == "promote" else f"{given.name} refused it"


async def _given(form: type[Decision], patience: int, run: FlowRun) -> Decision | None:
    """What a person gives; None where the run is cancelled meanwhile, of which Prefect's pause takes no notice."""
    pause = asyncio.ensure_future(apause_flow_run(wait_for_input=form, timeout=patience, poll_interval=POLL))
    cancelled = asyncio.ensure_future(_cancelled(run))
    await asyncio.wait((pause, cancelled), return_when=asyncio.FIRST_COMPLETED)
    return pause.result() if pause.done() else cancelled.result()  # the other ends with the loop


async def _cancelled(run: FlowRun) -> None:
    """Returns once somebody has cancelled it."""
    async with get_client() as client:
        while True:
            state = (await client.read_flow_run(run.id)).state
            if state is not None and (state.is_cancelling() or state.is_cancelled()):
                return
            await asyncio.sleep(POLL)


def _refused(chosen: Candidate, why: list[str]) -> Any:
    observer.get()("", "outcome", _outcome(chosen) | {"refused": why})
    if why == [CANCELLED]:
        return Cancelled(message=CANCELLED)
    return Completed(name="Refused", message="; ".join(why), data=_outcome(chosen) | {"refused": why})


def _outcome(chosen: Candidate) -> dict[str, Any]:
    return {
        "study": chosen.view.study.name,
        "stage": chosen.stage,
        "run": chosen.past.id,
        "name": chosen.name,
        "alias": chosen.alias,
        "gates": [{**vars(gate), "is_met": gate.is_met} for gate in chosen.gates],
        "refused": [],
    }
