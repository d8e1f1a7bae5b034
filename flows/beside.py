"""What lies beside the report's page: each figure as SVG and its numbers as CSV, and to which stage it belongs."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from markupsafe import Markup

from flows.drawing import Drawing
from flows.page import figures
from flows.wording import write_csv


@dataclass
class Beside:
    """The folder of a report."""

    folder: Path
    of_stage: dict[str, list[Path]] = field(default_factory=dict)
    """The figures of each stage, and their numbers."""

    def numbers(self, name: str, rows: Sequence[Mapping[str, Any]]) -> str:
        """Writes them; gives the file's name."""
        write_csv(self.folder / f"{name}.csv", rows)
        return f"{name}.csv"

    def figures(
        self,
        stage: str,
        what: str,
        panels: Mapping[str, Drawing],
        caption: Any,
        rows: Sequence[Mapping[str, Any]],
        legend: Markup | str = "",
    ) -> Markup:
        """Writes each panel as `<stage>.<what>.<panel>.svg` and the numbers of all as `<stage>.<what>.csv` (without
        `what` where it is empty); gives the figure for the page."""
        base = f"{stage}.{what}" if what else stage
        for panel, drawing in panels.items():
            path = self.folder / f"{base}.{panel}.svg"
            path.write_text(drawing.standalone, encoding="utf-8")
            self.of_stage.setdefault(stage, []).append(path)
        numbers = self.numbers(base, rows)
        self.of_stage[stage].append(self.folder / numbers)
        return figures([d.inline for d in panels.values()], caption, numbers, legend)
