"""The command line: `alignflow VERB`. Heavy imports are inside the verbs.

Exit status: 0 done, 1 a stage failed, 2 the spec is invalid, 3 an expectation was missed, 4 the environment is unfit,
130 interrupted.
"""

from __future__ import annotations

import json
import os
import sys
from pathlib import Path
from typing import Annotated, Any

os.environ.setdefault("PYDANTIC_DISABLE_PLUGINS", "__all__")  # 20 ms of looking for plug-ins we do not use

import typer

from specs.problems import Problem, SpecError, UnfitError, UserError

app = typer.Typer(
    name="alignflow",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
    help="Declarative alignment studies: one file, every method, honest intervals.",
)

SpecFile = Annotated[Path, typer.Argument(metavar="SPEC", help="A study file.")]
Sets = Annotated[list[str], typer.Option("--set", metavar="A.B=C", help="Write one value over the file's; repeatable.")]
AsJson = Annotated[bool, typer.Option("--json", help="Print JSON.")]
Offline = Annotated[bool, typer.Option("--offline", help="Use nothing from the network that is not here already.")]


def main() -> None:
    """The console script: a person's mistake is told in one line each, without a traceback."""
    try:
        app()
    except SpecError as error:
        _tell(error.problems)
        sys.exit(2)
    except UnfitError as error:
        print(f"environment: {error}", file=sys.stderr)
        sys.exit(4)
    except UserError as error:
        print(error, file=sys.stderr)
        sys.exit(1)
    except BrokenPipeError:  # the reader of a pipe went away
        os.dup2(os.open(os.devnull, os.O_WRONLY), 1)
        sys.exit(1)


def _tell(problems: list[Problem]) -> None:
    if "--json" in sys.argv:
        print(json.dumps({"errors": [p.as_json() for p in problems]}, indent=1))
        return
    for problem in problems:
        print(problem, file=sys.stderr)
    print(f"{len(problems)} error{'s' if len(problems) > 1 else ''}; nothing was run.", file=sys.stderr)


def _view(spec: Path, sets: list[str], offline: bool, force: list[str] | None = None) -> tuple[Any, Any]:
    from registry.home import home
    from specs.load import load
    from tasks.view import View

    loaded = load(spec, sets)
    folder = spec.resolve().parent
    forced = frozenset(force or [])
    return loaded, View.of(loaded.study, home(), folder, offline=offline, forced=forced)


@app.command()
def check(
    specs: Annotated[list[Path], typer.Argument(metavar="SPEC...", help="Study files.")],
    sets: Sets = [],  # noqa: B006  (typer reads the default)
    offline: Offline = False,
    as_json: AsJson = False,
) -> None:
    """Find everything that is wrong with a study before anything runs."""
    problems: list[Problem] = []
    for spec in specs:
        try:
            loaded, view = _view(spec, sets, offline)
            problems += [loaded.problem(path, text) for path, text in view.problems()]
        except SpecError as error:
            problems += error.problems
    if problems:
        raise SpecError(problems)
    if as_json:
        print(json.dumps({"errors": []}))
    else:
        print(*(f"{spec}: fine" for spec in specs), sep="\n")


@app.command()
def plan(
    spec: SpecFile,
    sets: Sets = [],  # noqa: B006
    force: Annotated[list[str], typer.Option("--force", metavar="STAGE", help="Build this stage anew.")] = [],  # noqa: B006
    offline: Offline = False,
    as_json: AsJson = False,
) -> None:
    """Show what a run would do: each stage's state and why."""
    _, view = _view(spec, sets, offline, force)
    if as_json:
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
    width = max(map(len, view.planned))
    for name, p in view.planned.items():
        print(f"{p.state:8} {name:{width}}  {p.step.fingerprint[:16]}  {p.step.kind:12}  {p.why}")


@app.command()
def run(
    spec: SpecFile,
    sets: Sets = [],  # noqa: B006
    force: Annotated[list[str], typer.Option("--force", metavar="STAGE", help="Build this stage anew.")] = [],  # noqa: B006
    offline: Offline = False,
    as_json: AsJson = False,
    quiet: Annotated[bool, typer.Option("--quiet", "-q", help="Print nothing unless something fails.")] = False,
) -> None:
    """Run a study: what is stored already is not built again."""
    from flows.running import run as run_study
    from specs.load import load

    status = run_study(load(spec, sets), offline=offline, force=force, as_json=as_json, quiet=quiet)
    raise typer.Exit(status)


@app.command()
def show(spec: SpecFile, stage: Annotated[str | None, typer.Argument()] = None, as_json: AsJson = False) -> None:
    """Show where a study or one of its stages stands: files, metrics, lineage."""
    from flows.showing import show_stage, show_study

    _, view = _view(spec, [], False)
    print(show_stage(view, stage, as_json) if stage else show_study(view, as_json))


@app.command()
def report(spec: SpecFile) -> None:
    """Draw the report of what is stored, and print its path."""
    from flows.report import write_report

    _, view = _view(spec, [], False)
    path = write_report(view)
    if path is None:
        raise UserError(f"{spec}: nothing of it is stored yet; `alignflow run {spec}` first")
    print(path)


@app.command()
def schema() -> None:
    """Print the JSON Schema of the language, for editors."""
    from specs.schema import schema as made

    print(json.dumps(made(), indent=1))


@app.command()
def explain(path: Annotated[str, typer.Argument(metavar="PATH", help="Such as stages.reward_model.beta")] = "") -> None:
    """Explain one field of the language: meaning, type, default."""
    from specs.schema import explain as lines

    try:
        print("\n".join(lines(path)))
    except KeyError as error:
        print(error.args[0], file=sys.stderr)
        raise typer.Exit(2) from None


@app.command()
def recipes() -> None:
    """List the studies that come with AlignFlow."""
    from flows.recipes import listed

    for name, text in listed():
        print(f"{name:16} {text}")


@app.command()
def init(
    recipe: Annotated[str, typer.Argument(help="A recipe's name.")] = "quickstart",
    folder: Annotated[Path, typer.Argument(help="Where to write it.")] = Path(),
) -> None:
    """Copy a recipe, with the schema beside it, to begin from."""
    from flows.recipes import copy

    print(f"wrote {copy(recipe, folder)}; next: alignflow run {folder / (recipe + '.yaml')}")


@app.command()
def doctor(as_json: AsJson = False) -> None:
    """Look at what a run depends on: versions, servers, disk, telemetry."""
    from flows.doctor import examine

    findings = examine()
    if as_json:
        print(json.dumps(findings, indent=1))
    else:
        for f in findings:
            print(f"{'ok  ' if f['fit'] else 'UNFIT'} {f['what']}: {f['found']}")
    raise typer.Exit(0 if all(f["fit"] for f in findings) else 4)


@app.command()
def gc(
    delete: Annotated[bool, typer.Option("--delete", help="Delete them; without this they are only listed.")] = False,
) -> None:
    """List what the store holds and no study's last run needs; delete it on request."""
    from flows.collecting import collect

    print(collect(delete))


if __name__ == "__main__":
    main()
