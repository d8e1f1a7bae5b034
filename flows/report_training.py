"""What calibrations and trainings showed of themselves: uniformity, curves, test metrics."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from typing import Any

from markupsafe import Markup

from flows.beside import Beside
from flows.figures import training, uniformity
from flows.page import folded, section, table
from tasks.inputs import TRAINING, UNIFORMITY, read_lines
from tasks.view import View


def trainings(view: View, records: Mapping[str, Any], beside: Beside) -> Markup:
    """A fold for each stage that was calibrated or trained."""
    folds = [*_calibrations(view, records, beside), *_trainings(view, records, beside)]
    return section("Training", *folds, anchor="training") if folds else Markup("")


def _calibrations(view: View, records: Mapping[str, Any], beside: Beside) -> Iterator[Markup]:
    for name in records:
        stored = view.stored(name)
        if stored is None or not (stored.folder / UNIFORMITY).exists():
            continue
        found = json.loads((stored.folder / UNIFORMITY).read_bytes())
        caption = (
            f"{len(found['values'])} prompts, {records[name]['metrics']['samples']:.0f} rollouts each. The rank of one more draw of "
            f"the reference among them is uniform if the calibration holds: Kolmogorov-Smirnov {found['statistic']:.3f}, "
            f"p = {found['p_value']:.3f}."
        )
        drawing = uniformity(found["values"], "calibrated reward of fresh answers", caption)
        values = [{"value": value} for value in found["values"]]
        yield folded(name, beside.figures(name, "", {"uniformity": drawing}, caption, values))


def _trainings(view: View, records: Mapping[str, Any], beside: Beside) -> Iterator[Markup]:
    for name in records:
        stored = view.stored(name)
        if stored is None or not (stored.folder / TRAINING).exists():
            continue
        rows = list(read_lines(stored.folder / TRAINING))
        panels = {drawing.title.removeprefix("training "): drawing for drawing in training(rows)}
        metrics = [(key, f"{value:.4f}") for key, value in stored.record["metrics"].items()]
        figure = beside.figures(name, "", panels, "Against the optimizer step.", rows)
        yield folded(name, figure, table(("metric", "value"), metrics, f"{name}: metrics"))
