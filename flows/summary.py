"""The tables that end a run, in the terminal and on its Prefect page: each evaluation with intervals, and below it what judges
say of it."""

from __future__ import annotations

from collections.abc import Collection, Iterator, Sequence

from rich.table import Table

from flows.wording import divergence, spread
from specs.evaluation import Evaluate
from tasks.evaluation_table import Evaluation, named
from tasks.verdict_table import COLUMNS, verdict_cells
from tasks.view import View


def evaluation_tables(view: View, only: str | None = None) -> Iterator[Table]:
    """Of every evaluation that is stored, or of one stage if it is one."""
    for name, entry in view.study.stages.items():
        if not isinstance(entry, Evaluate) or view.stored(name) is None or only not in (None, name):
            continue
        evaluation = named(view.artifact(name))
        percent = f"{100 * entry.confidence:g}"
        table = Table(
            title=f"{name}: {evaluation.results['prompts']} prompts, {percent} % intervals",
            title_justify="left",
        )
        table.add_column("policy", overflow="fold")  # members of a sweep differ at their end
        for column in ("judged by", "reward", f"difference to {evaluation.reference}", "win rate"):
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
        table.caption, table.caption_justify = evaluation.met() or None, "left"
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


def evaluation_markdown(evaluation: Evaluation, policies: Collection[str] = ()) -> str:
    """An evaluation, or some of its policies, as Markdown: estimates with their intervals, what part the reward had in the policy,
    and what judges say."""
    heads = ("policy", "judged by", "part", "reward", "win rate", "KL", "tokens")
    cells = [
        (
            r["policy"],
            r["judged_by"],
            r["reward_had_part"],
            spread(r, "reward"),
            spread(r, "win_rate"),
            divergence(evaluation.kl(r["policy"])),
            f"{r['length']:.1f}",
        )
        for r in evaluation.rows()
        if not policies or r["policy"] in policies
    ]
    tables = [_markdown(heads, cells)]
    if met := evaluation.met(policies):
        tables.append(f"{met[0].upper()}{met[1:]}.")
    if evaluation.judges:
        verdicts = (r for r in evaluation.verdicts() if not policies or r["policy"] in policies)
        said = [(r["policy"], r["judged_by"], *verdict_cells(r)) for r in verdicts]
        tables.append(_markdown(("policy", "judged by", *COLUMNS), said))
    return "\n\n".join(tables)


def _markdown(heads: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    lines = [heads, ["---"] * len(heads), *rows]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)
