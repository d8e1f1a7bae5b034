"""`alignflow promote`: the promote flow from the command line, and what it tells.

Everything about the candidate that can be wrong is told before a server is asked for anything.
"""

from __future__ import annotations

import json
import os
from contextlib import ExitStack
from pathlib import Path
from typing import Any, TextIO

from flows import server, silence
from flows.display import own_lines_only
from registry.home import make_home
from specs.problems import UnfitError
from tasks.observer import observer
from tasks.places import mlflow_problem, registry_place

DONE, FAILED, REFUSED = 0, 1, 3


def run(parameters: dict[str, Any], *, as_json: bool) -> int:
    """Promotes, and returns the exit status. Raises `UserError` and `UnfitError`."""
    silence.apply()
    home = make_home()
    log = home / "logs" / "promote.log"
    with ExitStack() as stack:
        out, err = stack.enter_context(own_lines_only(log))
        from httpx import TransportError

        from flows.candidate import candidate  # imports MLflow

        given = {key: value for key, value in parameters.items() if key not in ("approve", "wait")}
        chosen = candidate(**given)
        uri, _ = registry_place(chosen.view.study, home)
        if problem := mlflow_problem(uri):
            raise UnfitError(problem)
        configured = server.configured_url(Path.cwd()) or server.of_up(home).get("prefect")
        if configured:
            server.require(configured)
        elif parameters["approve"]:
            raise UnfitError("--approve asks in the Prefect UI, and there is none; `alignflow up` starts it")
        os.environ["PREFECT_API_URL"] = configured or server.start_temporary(log)
        from flows.promote import promote  # imports Prefect, which looks for its server's address now
        from flows.sweeping import of_home

        if not configured:
            server.wait_for(os.environ["PREFECT_API_URL"], log)
        told: dict[str, Any] = {}
        observer.set(_watch(told, err if as_json else out, parameters["wait"]))
        with of_home(home):
            try:
                state: Any = promote(**parameters | {"run": chosen.past.id}, return_state=True)
                error = None if told else state.result(raise_on_failure=False)
            except TransportError as gone:  # nor could the server be told that the flow failed
                error = gone
        if not told:  # the flow did not come to its end
            if isinstance(error, TransportError):
                raise UnfitError(
                    f"Prefect's server went away ({error}) before it was done; promote again once it is there"
                )
            if isinstance(error, UnfitError):
                raise error
            print(f"failed: {type(error).__name__}: {error}; the log is {log}", file=err)
            return FAILED
        print(json.dumps(told) if as_json else "\n".join(_lines(told)), file=out)
    return REFUSED if told["refused"] else DONE


def _watch(told: dict[str, Any], stream: TextIO, wait: str) -> Any:
    def watch(_: str, event: str, content: Any) -> None:
        if event == "outcome":
            told.update(content)
        elif event == "waiting":
            page = os.environ.get("PREFECT_UI_URL") or os.environ["PREFECT_API_URL"].removesuffix("/api")
            print(f"waits for a decision (at most {wait}): {page}/runs/flow-run/{content}", file=stream, flush=True)

    return watch


def _lines(told: dict[str, Any]) -> list[str]:
    from tasks.gates import Gate

    gates = [str(Gate(**{k: v for k, v in gate.items() if k != "is_met"})) for gate in told["gates"]]
    if told["refused"]:
        return [*gates, *(f"refused: {why}" for why in told["refused"] if why not in gates), "nothing was promoted"]
    source = f"models:/{told['name']}@{told['alias']}"
    if not told["is_new"]:
        return [*gates, f"{source} is this policy already (version {told['version']})"]
    before = f", before it was version {told['before']}" if told["before"] else ""
    return [*gates, f"{source} is version {told['version']}{before}: `{told['stage']}` of `{told['study']}`"]
