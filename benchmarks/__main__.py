"""`python -m benchmarks [PART ...]`: measures, prints a table and writes `benchmarks/results.json`.

Parts: command_line, orchestration, sampler, decoding, ranking, training, soups, plan. Ratios, not seconds, travel between machines;
nothing else should run meanwhile. About an hour on two cores.
"""

from __future__ import annotations

import json
import platform
import sys
import tempfile
from collections.abc import Callable, Iterable
from dataclasses import asdict
from pathlib import Path

from rich.console import Console
from rich.table import Table

from benchmarks import command_line, decoding, orchestration, plan, ranking, sampler, soups, training
from benchmarks.figures import Figure

PARTS: dict[str, Callable[[Path], Iterable[Figure]]] = {
    "command_line": command_line.measure,
    "orchestration": orchestration.measure,
    "sampler": sampler.measure,
    "decoding": decoding.measure,
    "ranking": ranking.measure,
    "training": training.measure,
    "soups": soups.measure,
    "plan": plan.measure,
}
RESULTS = Path(__file__).with_name("results.json")


def main(names: list[str]) -> int:
    unknown = [n for n in names if n not in PARTS]
    if unknown:
        print(f"no part {', '.join(unknown)}; there are {', '.join(PARTS)}", file=sys.stderr)
        return 2
    figures: list[Figure] = []
    with tempfile.TemporaryDirectory(prefix="alignflow-bench-") as folder:
        for name in names or PARTS:
            found: Iterable[Figure] = PARTS[name](Path(folder))
            for figure in found:
                print(f"{figure.name}: {_number(figure)}", flush=True)
                figures.append(figure)
    RESULTS.write_text(json.dumps([asdict(f) for f in figures], indent=1) + "\n", encoding="utf-8")
    table = Table(title=f"{platform.processor() or platform.machine()}, Python {platform.python_version()}")
    for column in ("", "ours", "baseline", "unit", "ratio", "spread", "target", "reached"):
        table.add_column(column, justify="left" if column in ("", "unit") else "right")
    for f in figures:
        table.add_row(
            f.name, f"{f.ours:.3g}", _or_dash(f.baseline), f.unit, _or_dash(f.ratio),
            f"{f.spread[0]:.3g} to {f.spread[1]:.3g}", f"{'≥' if f.higher_is_better else '≤'} {f.target:g}",
            "yes" if f.reached else "NO",
        )  # fmt: skip
    Console(width=150).print(table)
    print(f"numbers: {RESULTS}")
    return 0


def _number(figure: Figure) -> str:
    return f"{figure.ratio:.3g} times" if figure.ratio is not None else f"{figure.ours:.3g} {figure.unit}"


def _or_dash(value: float | None) -> str:
    return "-" if value is None else f"{value:.3g}"


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
