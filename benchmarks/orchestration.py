"""What the orchestration costs: a study that is stored already, a stage that does nothing, a first run's overhead."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from benchmarks.command_line import ALIGNFLOW
from benchmarks.figures import Figure, against, alternately, bounded, seconds
from flows.server import start_temporary, wait_for

QUICKSTART = Path(__file__).parents[1] / "specs" / "recipes" / "quickstart.yaml"
EMPTY_FLOW = "import prefect, mlflow; prefect.flow(lambda: None, name='empty')()"
RULES = 20


@contextmanager
def environment(home: Path) -> Iterator[dict[str, str]]:
    """Settings under which runs talk to one running Prefect server, and all write below `home`."""
    home.mkdir(parents=True)
    own = {k: v for k, v in os.environ.items() if k not in ("PREFECT_API_URL", "MLFLOW_TRACKING_URI")}
    own |= {"ALIGNFLOW_HOME": str(home / "alignflow"), "PREFECT_HOME": str(home / "prefect")}
    os.environ["PREFECT_HOME"] = own["PREFECT_HOME"]
    log = home / "server.log"
    url = start_temporary(log)
    wait_for(url, log)
    yield own | {"PREFECT_API_URL": url}


def outcome(spec: Path, settings: dict[str, str]) -> dict[str, float]:
    """Runs a study and returns how it ended."""
    done = subprocess.run(
        [ALIGNFLOW, "run", str(spec), "--json"], env=settings, cwd=spec.parent, capture_output=True, text=True
    )
    if done.returncode:
        sys.exit(f"{spec} ended with {done.returncode}:\n{done.stdout}{done.stderr}")
    found: dict[str, float] = json.loads(done.stdout)
    return found


def measure(folder: Path, repeats: int = 5) -> Iterator[Figure]:
    """The quickstart from nothing, then again with everything stored; then stages that do nothing."""
    with environment(folder / "orchestration") as settings:
        first = outcome(QUICKSTART, settings)
        share = 100 * (first["seconds"] - first["body_seconds"]) / first["seconds"]
        yield bounded(f"orchestration of the quickstart's first run ({first['seconds']:.0f} s)", [share], "%", 5.0)

        again = [ALIGNFLOW, "run", str(QUICKSTART)]
        alone = {k: v for k, v in settings.items() if k != "PREFECT_API_URL"}

        def empty() -> float:
            return seconds([sys.executable, "-c", EMPTY_FLOW], settings, folder)

        yield against(
            "quickstart, all stored, running server, against imports and an empty flow",
            alternately(lambda: seconds(again, settings, folder), empty, repeats), "s", 1.5,
        )  # fmt: skip
        yield against(
            "quickstart, all stored, temporary server, against the same",
            alternately(lambda: seconds(again, alone, folder), empty, repeats), "s", 3.0,
        )  # fmt: skip
        yield bounded("a stage that does nothing", list(_nothing(folder, settings, repeats)), "s", 0.4)


def _nothing(folder: Path, settings: dict[str, str], repeats: int) -> Iterator[float]:
    """Seconds a stage: a study of decoding rules, which generate nothing, against the same study with one of them. Each
    repeat names other temperatures, so that nothing is stored."""
    for repeat in range(repeats):
        took = []
        for count in (1, 1 + RULES):
            values = [round(0.1 + 0.001 * (repeat * 100 + count + i), 4) for i in range(count)]
            spec = folder / f"nothing-{repeat}-{count}.yaml"
            spec.write_text(
                f"version: 1\nname: nothing-{repeat}-{count}\n"
                "models: {base: {source: smollm2-135m-instruct}}\n"
                f"stages: {{rule: {{do: decode, method: sample, from: base, sweep: {{temperature: {values}}}}}}}\n",
                encoding="utf-8",
            )
            took.append(outcome(spec, settings)["seconds"])
        yield (took[1] - took[0]) / RULES
