"""The tables that end a run in the terminal: each evaluation, with intervals."""

from __future__ import annotations

from collections.abc import Iterator

from rich.table import Table

from specs.evaluation import Evaluate
from tasks.evaluation_table import named
from tasks.view import View


def evaluation_tables(view: View) -> Iterator[Table]:
    for name, entry in view.study.stages.items():
        if not isinstance(entry, Evaluate) or view.stored(name) is None:
            continue
        evaluation = named(view.artifact(name))
        percent = round(100 * entry.confidence)
        table = Table(
            title=f"{name}: {evaluation.results['prompts']} prompts, {percent} % intervals",
            title_justify="left",
        )
        for column in ("policy", "judged by", "reward", f"difference to {evaluation.reference}", "win rate"):
            table.add_column(column)
        for column in (*(metric.replace("_", " ") for metric in evaluation.inference), "tokens"):
            table.add_column(column)
        for row in evaluation.rows():
            table.add_row(
                row["policy"],
                row["judged_by"],
                *(
                    f"{row[w]:.3f} [{row[f'{w}_low']:.3f}, {row[f'{w}_high']:.3f}]"
                    for w in ("reward", "difference", "win_rate", *evaluation.inference)
                ),
                f"{row['length']:.1f}",
            )
        yield table
