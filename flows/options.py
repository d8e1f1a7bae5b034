"""The options of the command line: their names, what they take, what they mean."""

from __future__ import annotations

import os
import re
from argparse import ArgumentTypeError
from pathlib import Path
from typing import Any


def _positive(text: str) -> int:
    if not re.fullmatch(r"0*[1-9][0-9]*", text):
        raise ArgumentTypeError(f"takes a whole number from 1, not {text!r}")
    return int(text)


def _duration(text: str) -> str:
    if not re.fullmatch(r"[1-9][0-9]*[smhd]", text):
        raise ArgumentTypeError(f"takes a time such as 90s, 30m, 6h or 1d, not {text!r}")
    return text


OPTIONS: dict[str, tuple[tuple[str, ...], dict[str, Any]]] = {
    "spec": (("spec",), {"metavar": "SPEC", "type": Path, "help": "a study file"}),
    "spec_or_none": (("spec",), {"metavar": "SPEC", "nargs": "?", "type": Path, "help": "a study file"}),
    "cron": (("--cron",), {"metavar": "TEXT", "help": 'run it so: "0 2 * * *" is every night at two'}),
    "interval": (("--interval",), {"metavar": "TIME", "help": "run it so often: 6h"}),
    "rrule": (("--rrule",), {"metavar": "RULE", "help": "run it by a recurrence rule: FREQ=WEEKLY;BYDAY=MO"}),
    "timezone": (("--timezone",), {"metavar": "ZONE", "help": "that of the times (default: the study's, else UTC)"}),
    "active": (("--active",), {"action": "store_true", "help": "switch the schedule on"}),
    "list": (("--list",), {"action": "store_true", "help": "list what is deployed, and do nothing else"}),
    "remove": (("--remove",), {"metavar": "NAME", "help": "take the deployment of this study away"}),
    "specs": (("specs",), {"metavar": "SPEC", "type": Path, "nargs": "+", "help": "study files"}),
    "compared": (
        ("studies",),
        {"metavar": "SPEC|RUN", "nargs": "+", "help": "study files, or runs: an id in MLflow or how it begins"},
    ),
    "run": (
        ("run",),
        {"metavar": "RUN", "help": "a run's id in MLflow or how it begins, or a study's name or file for its last run"},
    ),
    "target": (("target",), {"metavar": "TARGET", "type": Path, "help": "a folder, or a file that ends in .zip"}),
    "weights": (("--weights",), {"action": "store_true", "help": "put the weights in too, not their digests alone"}),
    "own_home": (
        ("--home",),
        {
            "metavar": "FOLDER",
            "type": Path,
            "help": "an empty folder to build in (default: one that goes if all agrees)",
        },
    ),
    "served": (
        ("spec",),
        {"metavar": "SPEC", "type": Path, "help": "a study file, or a promoted policy: models:/NAME@ALIAS"},
    ),
    "policy_stage": (("stage",), {"metavar": "STAGE", "help": "a model or decoding rule that it built"}),
    "alias": (
        ("--alias",),
        {"metavar": "ALIAS", "required": True, "help": "what is to mean it from now on, such as champion"},
    ),
    "name": (("--name",), {"metavar": "NAME", "help": "the registered model (default: the study's name)"}),
    "expect": (
        ("--expect",),
        {"metavar": "BAR", "action": "append", "default": [], "help": "a further bar, such as 'win_rate.gold >= 0.55'"},
    ),
    "ungated": (("--ungated",), {"action": "store_true", "help": "promote it though no bar is set for it"}),
    "approve": (("--approve",), {"action": "store_true", "help": "have a person decide in the Prefect UI"}),
    "wait": (
        ("--wait",),
        {"metavar": "TIME", "type": _duration, "default": "1d", "help": "for the person, at most (default: 1d)"},
    ),
    "stage": (("stage",), {"metavar": "STAGE", "nargs": "?", "help": "one stage of it"}),
    "recipe": (
        ("recipe",),
        {"metavar": "RECIPE", "nargs": "?", "default": "quickstart", "help": "default: quickstart"},
    ),
    "folder": (
        ("folder",),
        {"metavar": "FOLDER", "nargs": "?", "type": Path, "default": Path(), "help": "default: here"},
    ),
    "path": (("path",), {"metavar": "PATH", "nargs": "?", "default": "", "help": "such as stages.reward_model.beta"}),
    "set": (
        ("--set",),
        {
            "metavar": "A.B=C",
            "action": "append",
            "default": [],
            "dest": "sets",
            "help": "write a value over the file's",
        },
    ),
    "force": (("--force",), {"metavar": "STAGE", "action": "append", "default": [], "help": "build this stage anew"}),
    "offline": (
        ("--offline",),
        {"action": "store_true", "help": "use nothing from the network that is not here already"},
    ),
    "against": (
        ("--against",),
        {"metavar": "STUDY:POLICY", "help": "whom to compare with (default: the first study's reference)"},
    ),
    "json": (("--json",), {"action": "store_true", "help": "print JSON"}),
    "policy": (("--policy",), {"metavar": "NAME", "required": True, "help": "a model or decoding rule of the study"}),
    "policies": (
        ("--policy",),
        {
            "metavar": "NAME",
            "action": "append",
            "default": [],
            "dest": "policies",
            "help": "a model or decoding rule of the study; give it again for more",
        },
    ),
    "host": (
        ("--host",),
        {"metavar": "ADDRESS", "default": "127.0.0.1", "help": "default: 127.0.0.1, this machine alone"},
    ),
    "port": (("--port",), {"metavar": "N", "type": int, "default": 8000, "help": "default: 8000; 0 is any free one"}),
    "prefect_port": (
        ("--port",),
        {"metavar": "N", "type": _positive, "default": 4200, "help": "Prefect's port (default: 4200)"},
    ),
    "mlflow_port": (
        ("--mlflow-port",),
        {"metavar": "N", "type": _positive, "default": 5000, "help": "MLflow's port (default: 5000)"},
    ),
    "api_key": (
        ("--api-key",),
        {
            "metavar": "KEY",
            "default": os.environ.get("ALIGNFLOW_API_KEY"),
            "help": "what clients must send; needed for any other --host (default: the variable ALIGNFLOW_API_KEY)",
        },
    ),
    "longest_answer": (
        ("--max-new-tokens",),
        {"metavar": "N", "type": _positive, "default": 512, "help": "the most tokens of an answer (default: 512)"},
    ),
    "prompt": (("--prompt",), {"metavar": "TEXT", "help": "what to answer; without it and --file, a dialogue"}),
    "file": (("--file",), {"metavar": "FILE", "type": Path, "help": "prompts: JSON Lines, Parquet, or one a line"}),
    "samples": (
        ("--samples",),
        {"metavar": "N", "type": _positive, "default": 1, "help": "answers to each (default: 1)"},
    ),
    "max_new_tokens": (
        ("--max-new-tokens",),
        {"metavar": "N", "type": _positive, "default": 128, "help": "the most tokens of an answer (default: 128)"},
    ),
    "seed": (("--seed",), {"metavar": "N", "type": int, "help": "default: the study's"}),
    "trace": (
        ("--trace",),
        {"action": "store_true", "help": "print what was looked at before each choice, and log it to MLflow"},
    ),
    "quiet": (("--quiet", "-q"), {"action": "store_true", "help": "print nothing unless something fails"}),
    "delete": (("--delete",), {"action": "store_true", "help": "delete them; without this they are only listed"}),
}
