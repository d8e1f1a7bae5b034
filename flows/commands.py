"""What each verb of the command line does. Heavy imports are inside the verbs.

The first line of a verb's docstring is its help.
"""

from __future__ import annotations

import argparse
import gc as garbage
import json
import os
import sys
from pathlib import Path
from typing import Any

from specs.problems import Problem, SpecError, UserError

Arguments = argparse.Namespace


def _view(arguments: Arguments, spec: Path, *, as_it_was: bool = False) -> tuple[Any, Any]:
    from registry.home import home
    from tasks.view import View

    loaded = _loaded(arguments, spec)
    forced = loaded.forced(getattr(arguments, "force", []))
    offline = getattr(arguments, "offline", False)
    folder = spec.resolve().parent
    return loaded, View.of(loaded.study, home(), folder, offline=offline, forced=forced, as_it_was=as_it_was)


def _loaded(arguments: Arguments, spec: Path) -> Any:
    """The study. Raises `SpecError` with all that is wrong with it; of what is right in a file with mistakes, the files, models and
    functions that it names are looked for too."""
    from specs.load import load

    try:
        return load(spec, getattr(arguments, "sets", []))
    except SpecError as error:
        if error.sound is None:
            raise
        from registry.facts import gather, problems
        from registry.home import home

        sound, folder, offline = error.sound, spec.resolve().parent, getattr(arguments, "offline", False)
        found = problems(sound.study, gather(sound.study, home(), folder, offline=offline))
        raise SpecError([*error.problems, *(sound.problem(path, text) for path, text in found)]) from None


def init(arguments: Arguments) -> None:
    """Copy a recipe, with the schema beside it, to begin from."""
    from flows.recipes import copy

    path = copy(arguments.recipe, arguments.folder)
    print(f"wrote {path}; next: alignflow run {path}")


def recipes(_: Arguments) -> None:
    """List the studies that come with AlignFlow."""
    from flows.recipes import listed

    for name, text in listed():
        print(f"{name:16} {text}")


def check(arguments: Arguments) -> None:
    """Find everything that is wrong with a study before anything runs."""
    problems: list[Problem] = []
    for spec in arguments.specs:
        try:
            loaded, view = _view(arguments, spec)
            problems += [loaded.problem(path, text) for path, text in view.problems()]
        except SpecError as error:
            problems += error.problems
    if problems:
        raise SpecError(problems)
    print(json.dumps({"errors": []}) if arguments.json else "\n".join(f"{spec}: fine" for spec in arguments.specs))


def plan(arguments: Arguments) -> None:
    """Show what a run would do: each stage's state and why, and what it would take of this machine."""
    from flows.planning import Outlook

    loaded, view = _view(arguments, arguments.spec)
    if problems := [loaded.problem(path, text) for path, text in view.foreign_guides()]:
        raise SpecError(problems)  # a stage that no run can build has no time and no memory
    outlook = Outlook(view)
    print(json.dumps(outlook.as_json(), indent=1) if arguments.json else "\n".join(outlook.lines()))


def run(arguments: Arguments) -> int:
    """Run a study: what is stored already is not built again."""
    garbage.enable()
    from flows.running import run as run_study

    loaded = _loaded(arguments, arguments.spec)
    return run_study(
        loaded, offline=arguments.offline, force=arguments.force, as_json=arguments.json, quiet=arguments.quiet
    )


def deploy(arguments: Arguments) -> None:
    """Make a study a deployment of Prefect's: run by a schedule, or from its form."""
    garbage.enable()
    from flows import server, silence
    from flows.scheduling import schedule_of
    from registry.home import home
    from specs.schedule import WAYS

    if sum((arguments.spec is not None, arguments.list, arguments.remove is not None)) != 1:
        raise UserError("give a study to deploy, or --list, or --remove NAME")
    silence.apply(offline=arguments.offline)
    if arguments.spec is not None:  # before Prefect is imported, which takes two seconds
        loaded = _loaded(arguments, arguments.spec)
        schedule = schedule_of(loaded.study.schedule, {key: getattr(arguments, key) for key in (*WAYS, "timezone")})
    os.environ["PREFECT_API_URL"] = server.lasting(home())  # read when Prefect is imported
    from flows import deploying

    if arguments.list:
        print(deploying.listed())
    elif arguments.remove is not None:
        print(deploying.remove(arguments.remove))
    else:
        print(deploying.deploy(loaded, schedule, active=arguments.active, offline=arguments.offline))


def decode(arguments: Arguments) -> None:
    """Ask a policy of a study: one prompt, a file of prompts, or a dialogue."""
    garbage.enable()
    from flows.decoding import Asking, asked, converse, print_answers, prompts_of

    if arguments.prompt is not None and arguments.file is not None:
        raise UserError("--prompt and --file are two ways to ask; give one")
    _, view = _view(arguments, arguments.spec, as_it_was=True)
    if arguments.trace and arguments.json:
        raise UserError("--trace and --json print different things; the trace in MLflow is JSON")
    asking = Asking(
        view,
        arguments.policy,
        samples=arguments.samples,
        max_new_tokens=arguments.max_new_tokens,
        seed=arguments.seed,
        trace=arguments.trace,
    )
    try:
        if arguments.file is not None:
            print_answers(asking, prompts_of(arguments.file), as_json=arguments.json)
        elif arguments.prompt is not None:
            print_answers(asking, [asked(arguments.prompt)], as_json=arguments.json)
        else:
            converse(asking)
    finally:  # what was answered before a dialogue was broken off too
        if asking.trace and asking.trace.told:
            asking.trace.log()


def serve(arguments: Arguments) -> None:
    """Serve policies of a study, or a promoted one, to clients of OpenAI's HTTP interface."""
    garbage.enable()
    from flows.decoding import ready
    from flows.serving import serve as serve_at
    from specs.sources import origin
    from tasks.live import Live

    if origin(str(arguments.spec), None) == "registry":
        from flows.promoted import standing

        if arguments.policies or arguments.sets:
            raise UserError(f"{arguments.spec} is itself the policy, as it was promoted; leave --policy and --set out")
        view, name = standing(str(arguments.spec))
        policies = ready(view, [name])
    elif not arguments.policies:
        raise UserError("which of the study's policies? name it by --policy")
    else:
        _, view = _view(arguments, arguments.spec, as_it_was=True)
        policies = ready(view, arguments.policies)
    live = Live(policies, rows=view.study.execution.rows, max_new_tokens=arguments.max_new_tokens)
    serve_at(live, host=arguments.host, port=arguments.port, api_key=arguments.api_key)


def show(arguments: Arguments) -> None:
    """Show where a study or one of its stages stands: files, metrics, lineage."""
    from flows.showing import show_stage, show_study

    _, view = _view(arguments, arguments.spec, as_it_was=True)
    print(show_stage(view, arguments.stage, arguments.json) if arguments.stage else show_study(view, arguments.json))
    if arguments.stage and not arguments.json and view.nodes[arguments.stage].kind == "evaluate":
        from rich.console import Console

        from flows.summary import evaluation_tables

        for table in evaluation_tables(view, arguments.stage):
            Console().print(table)


def report(arguments: Arguments) -> None:
    """Draw the report of what is stored, and print its path."""
    from flows.report import write_report

    _, view = _view(arguments, arguments.spec, as_it_was=True)
    written = write_report(view)
    if written is None:
        raise UserError(f"{arguments.spec}: nothing of it is stored yet; `alignflow run {arguments.spec}` first")
    print(written.path)


def compare(arguments: Arguments) -> None:
    """Put the policies of several studies, or of past runs, side by side, paired where they answered the same prompts."""
    from flows.comparing import show_comparison

    def view(study: str) -> Any:
        if study.endswith((".yaml", ".yml")) or Path(study).is_file():
            return _view(arguments, Path(study), as_it_was=True)[1]
        from flows.past_runs import past_run
        from registry.home import home

        return past_run(study, home()).view

    show_comparison([view(study) for study in arguments.studies], arguments.against, as_json=arguments.json)


def replay(arguments: Arguments) -> int:
    """Run a past run again in a home of its own, and say what comes out otherwise."""
    garbage.enable()
    from flows.replaying import replay as replayed

    return replayed(arguments.run, arguments.home, as_json=arguments.json)


def export(arguments: Arguments) -> None:
    """Write a past run as an RO-Crate: study, records, tables, report, and the digests of what is not in it."""
    garbage.enable()
    from flows.crate import export as exported

    print(exported(arguments.run, arguments.target, weights=arguments.weights))


def promote(arguments: Arguments) -> int:
    """Give a policy of a past run a name that the next study, or a server, can ask for."""
    garbage.enable()
    from flows.promoting import run as promote_one

    names = ("run", "stage", "alias", "name", "expect", "ungated", "approve", "wait")
    return promote_one({name: getattr(arguments, name) for name in names}, as_json=arguments.json)


def schema(_: Arguments) -> None:
    """Print the JSON Schema of the language, for editors."""
    from specs.schema import schema as made

    print(json.dumps(made(), indent=1))


def explain(arguments: Arguments) -> int:
    """Explain one field of the language: meaning, type, default."""
    from specs.schema import explain as lines

    try:
        print("\n".join(lines(arguments.path)))
    except KeyError as error:
        print(error.args[0], file=sys.stderr)
        return 2
    return 0


def up(arguments: Arguments) -> int:
    """Start Prefect's and MLflow's servers and a worker on this machine, until Ctrl-C."""
    from flows.up import up as started

    return started(port=arguments.port, mlflow_port=arguments.mlflow_port)


def doctor(arguments: Arguments) -> int:
    """Look at what a run depends on: versions, servers, disk, processor, telemetry."""
    from flows.doctor import examine

    findings = examine()
    if arguments.json:
        print(json.dumps(findings, indent=1))
    else:
        for f in findings:
            print(f"{'ok  ' if f['fit'] else 'UNFIT'} {f['what']}: {f['found']}")
    return 0 if all(f["fit"] for f in findings) else 4


def gc(arguments: Arguments) -> None:
    """List what the store holds and no study's last run needs; delete it on request."""
    from flows.collecting import collect

    print(collect(arguments.delete))
