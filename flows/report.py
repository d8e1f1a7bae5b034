"""The report of a study: one self-contained HTML file, and beside it its figures and the numbers behind them.

It is drawn from the store alone, so it can be drawn again at any time. A report that already shows these
artifacts under these names is left as it is.
"""

from __future__ import annotations

import hashlib
import json
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from flows.expectations import expectations
from registry.home import study_folder
from specs.evaluation import Evaluate
from tasks.view import View

REPORT = "report.html"
FORM = 14
"""Raised by hand when a report is to be drawn otherwise from the same artifacts."""


@dataclass(frozen=True)
class Report:
    """A report on the disk."""

    path: Path
    figures: dict[str, list[Path]] = field(default_factory=dict)
    """By stage, the figures that were drawn now; none where the report was left as it is."""


def write_report(view: View, into: Path | None = None) -> Report | None:
    """Writes `report.html`, the SVG and the CSV files into a folder, by itself the study's; None where no stage is stored."""
    records = {n: s.record for n in view.planned if (s := view.stored(n))}
    if not records:
        return None
    folder = into or study_folder(view.home, view.study.name)
    path = folder / REPORT
    mark = f"<!-- {_state(view, records)} -->"
    if path.exists() and path.read_text(encoding="utf-8").startswith(mark):
        return Report(path)
    folder.mkdir(parents=True, exist_ok=True)
    text, figures = _drawn(view, records, folder)
    temporary = path.with_suffix(".tmp")
    temporary.write_text(mark + text, encoding="utf-8")
    temporary.replace(path)
    return Report(path, figures)


def _state(view: View, records: dict[str, Any]) -> str:
    """Changes with everything that the page shows."""
    built = {n: [r["fingerprint"], r["provenance"]["finished"]] for n, r in records.items()}
    names = {name: step.fingerprint for name, step in sorted(view.nodes.items())}
    bars = [str(expected) for expected in expectations(view)]  # no identity
    state = {"form": FORM, "study": view.study.name, "built": built, "names": names, "expected": bars}
    return hashlib.sha256(json.dumps(state, sort_keys=True).encode()).hexdigest()


def _drawn(view: View, records: dict[str, Any], folder: Path) -> tuple[str, dict[str, list[Path]]]:
    # Here, for most runs draw nothing: matplotlib takes longer to load than a cached run may last.
    from markupsafe import Markup

    from flows.beside import Beside
    from flows.page import page
    from flows.report_comparison import Comparison
    from flows.report_lineage import environment, lineage
    from flows.report_training import trainings

    beside = Beside(folder)
    names = [n for n, entry in view.study.stages.items() if isinstance(entry, Evaluate) and n in records]
    comparisons = [Comparison.of(view, name, beside) for name in names]
    trained = trainings(view, records, beside)
    links = [(c.name, f"Comparison {c.name}") for c in comparisons] + [("training", "Training")] * bool(trained)
    links += [("lineage", "Data, models and stages"), ("environment", "Environment"), ("replay", "How to run it again")]
    items = Markup("").join(Markup("<a href='#{}'>{}</a>").format(anchor, title) for anchor, title in links)
    parts = [
        Markup("<h1>{}</h1>").format(view.study.name),
        *(c.question for c in comparisons),
        Markup("<nav aria-label='Sections'>{}</nav>").format(items),
        *(c.found for c in comparisons),
        trained,
        lineage(view, records),
        environment(view, records),
    ]
    return page(view.study.name, parts), beside.of_stage
