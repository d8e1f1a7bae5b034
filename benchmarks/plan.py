"""What `plan` says against what is then measured: memory, disk and time of each stage of every method.

The recipe of all methods, cut down to a few prompts, is planned and run in a new home, where time can only be told by the
processor's speed; then again with other numbers of prompts and samples, where it is told by the first run. A plan is right
where it is within 35 %. Stages of less than five seconds, most of it beginning, count by memory and disk alone.
"""

from __future__ import annotations

import json
import math
import os
import subprocess
import sys
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from benchmarks.command_line import ALIGNFLOW
from benchmarks.figures import Figure
from registry.store import RECORD, folder_of

RECIPE = Path(__file__).parents[1] / "specs" / "recipes" / "methods.yaml"
RUNS = (
    ("the first run", ("data.train.rows=8", "data.held_out.rows=8")),
    ("other rows", ("data.train.rows=12", "data.held_out.rows=16", "stages.rollouts.samples=6")),
)
WITHIN = 1.35
SHORT = 5.0  # seconds


def measure(folder: Path) -> Iterator[Figure]:
    home = folder / "plan"
    home.mkdir()
    settings = os.environ | {"ALIGNFLOW_HOME": str(home)}
    for run, sets in RUNS:
        options = [str(RECIPE), *(word for one in sets for word in ("--set", one))]
        told = json.loads(_output("plan", *options, "--json", settings=settings))
        _output("run", *options, "--quiet", settings=settings)
        yield from figures(run, told, home)


def figures(run: str, told: Mapping[str, Any], home: Path) -> Iterator[Figure]:
    """Prints each stage's ratios of what was told to what was measured; of each kind of them, the share that is right."""
    found: dict[str, list[float]] = {}
    for stage in told["stages"]:
        path = folder_of(home, stage["kind"], stage["fingerprint"]) / RECORD
        if stage["state"] == "run" and path.exists():
            ratios = compared(stage["expected"], json.loads(path.read_bytes()))
            print(f"{run}: {stage['name']:16} " + "  ".join(f"{what} {ratio:.2f}" for what, ratio in ratios.items()))
            for what, ratio in ratios.items():
                found.setdefault(what, []).append(ratio)
    for what, every in found.items():
        share = 100 * sum(1 / WITHIN <= ratio <= WITHIN for ratio in every) / len(every)
        worst = max(every, key=lambda ratio: abs(math.log(ratio)))
        name = f"`plan`, {run}: stages whose {what} it tells within 35 % (the worst {worst:.2f} times)"
        yield Figure(name, share, None, "%", None, 100.0, True, share == 100.0, (min(every), max(every)))


def compared(expected: Mapping[str, Any], record: Mapping[str, Any]) -> dict[str, float]:
    """What was told to what was measured, of a stage."""
    run = record["provenance"]
    ratios = {"memory": expected["host_bytes"] / run["spent"]["host_bytes"]}
    if size := sum(file["bytes"] for file in record["files"].values()):
        ratios["disk"] = expected["disk_bytes"] / size
    if run["seconds"] >= SHORT and expected["seconds"] is not None:
        ratios["time"] = expected["seconds"] / run["seconds"]
    return ratios


def _output(*command: str, settings: Mapping[str, str]) -> str:
    done = subprocess.run([ALIGNFLOW, *command], env=settings, capture_output=True, text=True)
    if done.returncode:
        sys.exit(f"{' '.join(command)} ended with {done.returncode}:\n{done.stdout}{done.stderr}")
    return done.stdout
