"""The command line: `alignflow VERB`. Heavy imports are inside the verbs.

Exit status: 0 done, 1 a stage failed, 2 the spec is invalid, 3 an expectation was missed, 4 the environment is unfit,
130 interrupted.

argparse, because `check` and `plan` are to feel immediate: the nicer libraries cost as much to import as the language.
"""

from __future__ import annotations

import argparse
import gc as garbage
import json
import os
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

garbage.disable()  # imports make much and free nothing; `run` switches it on again
os.environ.setdefault("PYDANTIC_DISABLE_PLUGINS", "__all__")  # 20 ms of looking for plug-ins we do not use

from flows.options import OPTIONS  # noqa: E402  (after the line above)
from specs.problems import Problem, SpecError, UnfitError, UserError  # noqa: E402

Arguments = argparse.Namespace


def main(argv: list[str] | None = None) -> int:
    """The console script: a person's mistake is told in one line each, without a traceback."""
    arguments = _parser().parse_args(argv)
    try:
        status: int | None = arguments.verb(arguments)
        sys.stdout.flush()
        return status or 0
    except SpecError as error:
        _tell(error.problems, getattr(arguments, "json", False))
        return 2
    except UnfitError as error:
        print(f"environment: {error}", file=sys.stderr)
        return 4
    except UserError as error:
        print(error, file=sys.stderr)
        return 2
    except KeyboardInterrupt:  # how a dialogue ends, or a server that is still loading
        print(file=sys.stderr)
        return 130
    except BrokenPipeError:  # the reader of a pipe went away
        os.dup2(os.open(os.devnull, os.O_WRONLY), 1)
        return 1


def console() -> None:
    """What the installed `alignflow` runs. Taking a loaded interpreter apart costs a third of a short command's time, so
    it is left to the system; `run` has things to end in order."""
    status = main()
    if "prefect" in sys.modules:
        sys.exit(status)
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(status)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="alignflow", description="Declarative alignment studies: one file, every method, honest intervals."
    )
    verbs = parser.add_subparsers(metavar="VERB", required=True)

    def verb(function: Callable[[Arguments], int | None], *options: str) -> argparse.ArgumentParser:
        text = (function.__doc__ or "").splitlines()[0]
        made = verbs.add_parser(function.__name__, help=text, description=text)
        made.set_defaults(verb=function)
        for option in options:
            names, settings = OPTIONS[option]
            made.add_argument(*names, **settings)
        return made

    verb(init, "recipe", "folder")
    verb(recipes)
    verb(check, "specs", "set", "offline", "json")
    verb(plan, "spec", "set", "force", "offline", "json")
    verb(run, "spec", "set", "force", "offline", "json", "quiet")
    verb(decode, "spec", "policy", "prompt", "file", "samples", "max_new_tokens", "seed", "trace", "set", "json")
    verb(serve, "spec", "policies", "host", "port", "api_key", "longest_answer", "set")
    verb(show, "spec", "stage", "set", "json")
    verb(report, "spec", "set")
    verb(compare, "specs", "against", "json")
    verb(schema)
    verb(explain, "path")
    verb(up, "prefect_port", "mlflow_port")
    verb(doctor, "json")
    verb(gc, "delete")
    return parser


def _tell(problems: list[Problem], as_json: bool) -> None:
    if as_json:
        print(json.dumps({"errors": [p.as_json() for p in problems]}, indent=1))
        return
    for problem in problems:
        print(problem, file=sys.stderr)
    print(f"{len(problems)} error{'s' if len(problems) > 1 else ''}; nothing was run.", file=sys.stderr)


def _view(arguments: Arguments, spec: Path) -> tuple[Any, Any]:
    from registry.home import home
    from specs.load import load
    from tasks.view import View

    loaded = load(spec, getattr(arguments, "sets", []))
    forced = loaded.forced(getattr(arguments, "force", []))
    offline = getattr(arguments, "offline", False)
    return loaded, View.of(loaded.study, home(), spec.resolve().parent, offline=offline, forced=forced)


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
    """Show what a run would do: each stage's state and why."""
    _, view = _view(arguments, arguments.spec)
    if arguments.json:
        stages = [
            {
                "name": name,
                "kind": p.step.kind,
                "fingerprint": p.step.fingerprint,
                "state": p.state,
                "why": p.why,
                "inputs": [i for _, i in p.step.inputs],
            }
            for name, p in view.planned.items()
        ]
        print(json.dumps({"study": view.study.name, "stages": stages}, indent=1))
        return
    for name in view.to_fetch():
        print(f"fetch    {name} ({view.nodes[name].node.entry.source})")
    width, kinds = max(map(len, view.planned)), max(len(p.step.kind) for p in view.planned.values())
    for name, p in view.planned.items():
        print(f"{p.state:8} {name:{width}}  {p.step.fingerprint[:16]}  {p.step.kind:{kinds}}  {p.why}")


def run(arguments: Arguments) -> int:
    """Run a study: what is stored already is not built again."""
    garbage.enable()
    from flows.running import run as run_study
    from specs.load import load

    loaded = load(arguments.spec, arguments.sets)
    return run_study(
        loaded, offline=arguments.offline, force=arguments.force, as_json=arguments.json, quiet=arguments.quiet
    )


def decode(arguments: Arguments) -> None:
    """Ask a policy of a study: one prompt, a file of prompts, or a dialogue."""
    garbage.enable()
    from flows.decoding import Asking, asked, converse, print_answers, prompts_of

    if arguments.prompt is not None and arguments.file is not None:
        raise UserError("--prompt and --file are two ways to ask; give one")
    _, view = _view(arguments, arguments.spec)
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
    if arguments.file is not None:
        print_answers(asking, prompts_of(arguments.file), as_json=arguments.json)
    elif arguments.prompt is not None:
        print_answers(asking, [asked(arguments.prompt)], as_json=arguments.json)
    else:
        converse(asking)
    if asking.trace:
        asking.trace.log()


def serve(arguments: Arguments) -> None:
    """Serve policies of a study to clients of OpenAI's HTTP interface."""
    garbage.enable()
    from flows.decoding import ready
    from flows.serving import serve as serve_at
    from tasks.live import Live

    _, view = _view(arguments, arguments.spec)
    policies = ready(view, arguments.policies)
    live = Live(policies, rows=view.study.execution.rows, max_new_tokens=arguments.max_new_tokens)
    serve_at(live, host=arguments.host, port=arguments.port, api_key=arguments.api_key)


def show(arguments: Arguments) -> None:
    """Show where a study or one of its stages stands: files, metrics, lineage."""
    from flows.showing import show_stage, show_study

    _, view = _view(arguments, arguments.spec)
    print(show_stage(view, arguments.stage, arguments.json) if arguments.stage else show_study(view, arguments.json))


def report(arguments: Arguments) -> None:
    """Draw the report of what is stored, and print its path."""
    from flows.report import write_report

    _, view = _view(arguments, arguments.spec)
    written = write_report(view)
    if written is None:
        raise UserError(f"{arguments.spec}: nothing of it is stored yet; `alignflow run {arguments.spec}` first")
    print(written.path)


def compare(arguments: Arguments) -> None:
    """Put the policies of several studies side by side, paired where they answered the same prompts."""
    from flows.comparing import show_comparison

    show_comparison([_view(arguments, spec)[1] for spec in arguments.specs], arguments.against, as_json=arguments.json)


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
    """Start Prefect's server and MLflow's server on this machine, until Ctrl-C."""
    from flows.up import up as started

    return started(port=arguments.port, mlflow_port=arguments.mlflow_port)


def doctor(arguments: Arguments) -> int:
    """Look at what a run depends on: versions, servers, disk, telemetry."""
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


if __name__ == "__main__":
    console()
