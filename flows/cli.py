"""The command line: `alignflow VERB`, its options, and how a mistake is told. The verbs are in `flows.commands`.

Exit status: 0 done, 1 a stage failed, 2 the study or the command is invalid, 3 an expectation was missed, a promotion refused, or
a replay does not agree, 4 the environment is unfit, 130 interrupted.

argparse, because `check` and `plan` are to feel immediate: the nicer libraries cost as much to import as the language.
"""

from __future__ import annotations

import argparse
import gc as garbage
import json
import os
import sys
from collections.abc import Callable

garbage.disable()  # imports make much and free nothing; `run` switches it on again
os.environ.setdefault("PYDANTIC_DISABLE_PLUGINS", "__all__")  # 20 ms of looking for plug-ins we do not use

from flows import commands  # noqa: E402  (after the line above)
from flows.options import OPTIONS  # noqa: E402  (likewise)
from specs.problems import Problem, SpecError, UnfitError, UserError  # noqa: E402  (likewise)

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

    verb(commands.init, "recipe", "folder")
    verb(commands.recipes)
    verb(commands.check, "specs", "set", "offline", "json")
    verb(commands.plan, "spec", "set", "force", "offline", "json")
    verb(commands.run, "spec", "set", "force", "offline", "json", "quiet")
    verb(
        commands.decode, "spec", "policy", "prompt", "file", "samples", "max_new_tokens", "seed", "trace", "set", "json"
    )
    verb(commands.serve, "served", "policies", "host", "port", "api_key", "longest_answer", "set")
    verb(
        commands.deploy,
        "spec_or_none",
        "cron",
        "interval",
        "rrule",
        "timezone",
        "active",
        "list",
        "remove",
        "set",
        "offline",
    )
    verb(commands.show, "spec", "stage", "set", "json")
    verb(commands.report, "spec", "set")
    verb(commands.compare, "compared", "against", "json")
    verb(commands.replay, "run", "own_home", "json")
    verb(commands.export, "run", "target", "weights")
    verb(commands.promote, "run", "policy_stage", "alias", "name", "expect", "ungated", "approve", "wait", "json")
    verb(commands.schema)
    verb(commands.explain, "path")
    verb(commands.up, "prefect_port", "mlflow_port")
    verb(commands.doctor, "json")
    verb(commands.gc, "delete")
    return parser


def _tell(problems: list[Problem], as_json: bool) -> None:
    if as_json:
        print(json.dumps({"errors": [p.as_json() for p in problems]}, indent=1))
        return
    for problem in problems:
        print(problem, file=sys.stderr)
    print(f"{len(problems)} error{'s' if len(problems) > 1 else ''}; nothing was run.", file=sys.stderr)


if __name__ == "__main__":
    console()
