"""`alignflow run`: from a checked study to an exit status.

The order matters for time: the fork server and a temporary Prefect server start first and load in the
background, then this process imports Prefect and MLflow.
"""

from __future__ import annotations

import json
import os
import signal
import time
from collections.abc import Callable
from contextlib import ExitStack
from pathlib import Path
from typing import Any

from flows import ready, server, silence
from flows.display import Display, own_lines_only
from flows.planning import Outlook
from registry.home import make_home
from specs.load import Loaded
from specs.problems import SpecError, UnfitError
from tasks import child
from tasks.observer import observer
from tasks.view import View

DONE, FAILED, INVALID, MISSED, UNFIT, INTERRUPTED = 0, 1, 2, 3, 4, 130


Conclusion = Callable[[Display, View, dict[str, Any]], None]
"""What is printed at a run's end; the display is closed by then, and its console open."""


def run(
    loaded: Loaded, *, offline: bool, force: list[str], as_json: bool, quiet: bool, conclude: Conclusion | None = None
) -> int:
    """Runs the study and returns the exit status. A run that is a part of something else has a conclusion of its own; it gets
    none where a stage failed. Raises `SpecError` and `UnfitError`."""
    began = time.monotonic()
    silence.apply(offline=offline)
    study, folder = loaded.study, loaded.path.resolve().parent
    home = make_home()
    forced = loaded.forced(force)
    view = View.of(study, home, folder, offline=offline, forced=forced)
    problems = [loaded.problem(path, text) for path, text in view.problems()]
    if problems:
        raise SpecError(problems)
    outlook = Outlook(view)
    outlook.require()
    log = home / "logs" / study.name / "run.log"
    with ExitStack() as stack:
        out, err = stack.enter_context(own_lines_only(log))
        ready.require(view)
        configured = server.configured_url(Path.cwd()) or server.of_up(home).get("prefect")
        if configured:
            server.require(configured)
        url = configured or server.start_temporary(log)
        if view.to_build():
            child.warm_up()
        os.environ["PREFECT_API_URL"] = url
        display = Display(err if as_json else out, view.to_fetch() + list(view.planned), quiet=quiet)
        stack.callback(signal.signal, signal.SIGINT, signal.signal(signal.SIGINT, _stop(display)))
        display.say(f"{study.name}: {_stages(len(view.planned))}, {len(view.to_build())} to run; log: {_near(log)}")
        for line in outlook.unfit():
            display.say(f"warning: does not fit this machine: {line}")
        with display.showing():
            outcome = _run_flow(loaded, view, display, offline, sorted(forced), None if configured else log)
        display.final()
        outcome["seconds"] = round(time.monotonic() - began, 3)
        if conclude and not outcome["failed"]:
            conclude(display, view, outcome)
        elif as_json:
            print(json.dumps(outcome), file=out)
        elif not quiet or outcome.get("failed") or outcome.get("missed"):
            _summary(display, view, outcome)
    return INTERRUPTED if display.interrupted else _status(outcome)


def _stop(display: Display) -> Any:
    def handler(_number: int, _frame: Any) -> None:
        if display.interrupted:
            os._exit(INTERRUPTED)
        display.interrupted = True
        child.stopping.set()
        display.say("stopping; finished stages are kept (Ctrl-C again to leave at once)")

    return handler


def _run_flow(
    loaded: Loaded, view: View, display: Display, offline: bool, force: list[str], server_log: Path | None
) -> dict[str, Any]:
    from flows.align import align  # imports Prefect and MLflow, about three seconds
    from flows.sweeping import of_home

    if server_log:
        server.wait_for(os.environ["PREFECT_API_URL"], server_log)
    observer.set(display.observe)
    with of_home(view.home):
        state: Any = align(
            loaded.study,
            folder=str(loaded.path.resolve().parent),
            offline=offline,
            force=force,
            return_state=True,
        )
    if not display.outcome:  # the flow did not come to its end
        error = state.result(raise_on_failure=False)
        if isinstance(error, UnfitError):
            raise error
        text = str(error).splitlines()[0] if str(error) else state.message
        return {"study": loaded.study.name, "failed": {"": f"{type(error).__name__}: {text}"}, "stages": {}}
    return display.outcome


def _summary(display: Display, view: View, outcome: dict[str, Any]) -> None:
    from flows.summary import evaluation_tables

    console = display.console
    for table in evaluation_tables(view) if not outcome["failed"] else []:
        console.print(table)
    for line in outcome.get("missed", []):
        console.print(f"missed: {line}", soft_wrap=True)
    for name, why in outcome["failed"].items():
        console.print(f"failed: {name}: {why}" if name else f"failed: {why}", soft_wrap=True)
    for lost in outcome.get("untracked", []):
        console.print(f"not tracked in MLflow: {lost}", soft_wrap=True)
    if outcome.get("report"):
        console.print(f"report: {_near(Path(outcome['report']))}", soft_wrap=True)
    uri = outcome.get("mlflow", {}).get("uri", "")
    if uri == f"sqlite:///{view.home / 'mlflow.db'}" and (up := server.of_up(view.home)):
        console.print(f"runs:   {up['mlflow']} and {server.page(up['prefect'])}", soft_wrap=True)
    elif uri.startswith("sqlite"):
        console.print(f"runs:   mlflow ui --backend-store-uri {uri}", soft_wrap=True)
    if display.interrupted:
        console.print("stopped; run the same command to go on")


def _stages(count: int) -> str:
    return "1 stage" if count == 1 else f"{count} stages"


def _near(path: Path) -> str:
    try:
        return str(path.relative_to(Path.cwd()))
    except ValueError:
        return str(path)


def _status(outcome: dict[str, Any]) -> int:
    if outcome["failed"]:
        return FAILED
    return MISSED if outcome.get("missed") else DONE
