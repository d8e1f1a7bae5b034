"""The options of the command line: their names, what they take, what they mean."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any


def _positive(text: str) -> int:
    number = int(text)
    if number < 1:
        raise ValueError
    return number


OPTIONS: dict[str, tuple[tuple[str, ...], dict[str, Any]]] = {
    "spec": (("spec",), {"metavar": "SPEC", "type": Path, "help": "a study file"}),
    "specs": (("specs",), {"metavar": "SPEC", "type": Path, "nargs": "+", "help": "study files"}),
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
            "required": True,
            "action": "append",
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
