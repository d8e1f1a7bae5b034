"""The tables that end a run in the terminal: each evaluation with intervals, and below it what judges say of it."""

from __future__ import annotations

from collections.abc import Iterator

from rich.table import Table

from flows.wording import divergence, spread
from specs.evaluation import Evaluate
from tasks.evaluation_table import Evaluation, named
from tasks.verdict_table import COLUMNS, verdict_cells
from tasks.view import View


def evaluation_tables(view: View) -> Iterator[Table]:
    for name, entry in view.study.stages.items():
        if not isinstance(entry, Evaluate) or view.stored(name) is None:
            continue
        evaluation = named(view.artifact(name))
        percent = f"{100 * entry.confidence:g}"
        table = Table(
            title=f"{name}: {evaluation.results['prompts']} prompts, {percent} % intervals",
            title_justify="left",
        )
        for column in ("policy", "judged by", "reward", f"difference to {evaluation.reference}", "win rate"):
            table.add_column(column)
        for column in (*(metric.replace("_", " ") for metric in evaluation.inference), "KL", "tokens"):
            table.add_column(column)
        for row in evaluation.rows():
            table.add_row(
                row["policy"],
                f"{row['judged_by']} (guides)" if row["reward_had_part"] == "guides" else row["judged_by"],
                *(spread(row, what) for what in ("reward", "difference", "win_rate", *evaluation.inference)),
                divergence(evaluation.kl(row["policy"])),
                f"{row['length']:.1f}",
            )
        yield table
        if evaluation.judges:
            yield _verdicts(name, evaluation)


def _verdicts(name: str, evaluation: Evaluation) -> Table:
    table = Table(title=f"{name}: verdicts on each policy beside {evaluation.reference}", title_justify="left")
    for column in ("policy", "judged by", *COLUMNS):
        table.add_column(column)
    for row in evaluation.verdicts():
        table.add_row(row["policy"], row["judged_by"], *verdict_cells(row))
    return table
