"""The report of a study: one self-contained HTML file, and beside it the numbers behind its figures as CSV.

It is drawn from the store alone, so it can be drawn again at any time. A report that already shows these
artifacts under these names is left as it is.
"""

from __future__ import annotations

import csv
import hashlib
import json
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from markupsafe import Markup, escape

from registry.home import study_folder
from specs.evaluation import Evaluate
from tasks.evaluation_table import Evaluation, generations, named
from tasks.inputs import TRAINING, UNIFORMITY, read_lines
from tasks.verdict_table import COLUMNS, verdict_cells
from tasks.view import View

REPORT = "report.html"
SHOWN_PROMPTS = 6


def write_report(view: View) -> Path | None:
    """Writes `report.html` and the CSV files into the study's folder; None where no stage is stored."""
    records = {n: s.record for n in view.planned if (s := view.stored(n))}
    if not records:
        return None
    folder = study_folder(view.home, view.study.name)
    built = {n: [r["fingerprint"], r["provenance"]["finished"]] for n, r in records.items()}
    state = {"version": 7, "built": built, "nodes": sorted(view.nodes)}
    mark = f"<!-- {hashlib.sha256(json.dumps(state, sort_keys=True).encode()).hexdigest()} -->"
    path = folder / REPORT
    if path.exists() and path.read_text(encoding="utf-8").startswith(mark):
        return path
    folder.mkdir(parents=True, exist_ok=True)
    from flows.figures import intervals  # matplotlib: most runs draw nothing

    evaluations = {
        name: named(view.artifact(name))
        for name, entry in view.study.stages.items()
        if isinstance(entry, Evaluate) and name in records
    }
    sections = [_summary(view, evaluations)]
    for name, evaluation in evaluations.items():
        rows = list(evaluation.rows())
        _write_csv(folder / f"{name}.csv", rows)
        figure = intervals(rows, evaluation.reference)
        (folder / f"{name}.svg").write_text(figure, encoding="utf-8")
        sections.append(_evaluation_section(view, name, evaluation, rows, figure))
        sections += _best_of_section(name, evaluation, folder)
        sections += _verdicts_section(name, evaluation, folder)
    sections += _calibration_sections(view, records, folder)
    sections += _training_sections(view, records, folder)
    sections.append(_stages_section(view, records))
    text = mark + _page(view.study.name, sections)
    temporary = path.with_suffix(".tmp")
    temporary.write_text(text, encoding="utf-8")
    temporary.replace(path)
    return path


def _summary(view: View, evaluations: dict[str, Evaluation]) -> Markup:
    lines = [verdict(row) for e in evaluations.values() for row in e.rows() if row["policy"] != e.reference]
    items = Markup("").join(Markup("<li>{}</li>").format(line) for line in lines)
    return Markup("<h1>{}</h1>\n<ul class=verdicts>{}</ul>").format(view.study.name, items)


def verdict(row: dict[str, Any]) -> str:
    """What the interval of the paired difference says, in words."""
    low, high = row["difference_low"], row["difference_high"]
    if low > 0:
        word = "higher than"
    elif high < 0:
        word = "lower than"
    else:
        word = "not told apart from"
    return (
        f"Judged by {row['judged_by']}, {row['policy']} is {word} {row['against']}: difference "
        f"{row['difference']:+.3f} [{low:+.3f}, {high:+.3f}], win rate {row['win_rate']:.3f} "
        f"[{row['win_rate_low']:.3f}, {row['win_rate_high']:.3f}] on {row['prompts']} prompts."
    )


def _evaluation_section(
    view: View, name: str, evaluation: Evaluation, rows: list[dict[str, Any]], figure: Markup
) -> Markup:
    percent = round(100 * evaluation.results["confidence"])
    columns = (
        "policy",
        "judged by",
        "reward",
        f"difference to {evaluation.reference}",
        "win rate",
        *(metric.replace("_", " ") for metric in evaluation.inference),
        "tokens",
        "finished",
    )
    cells = [
        (r["policy"], r["judged_by"], _spread(r, "reward"), _spread(r, "difference"), _spread(r, "win_rate"),
         *(_spread(r, metric) for metric in evaluation.inference), _spread(r, "length", 1), f"{100 * r['finished']:.0f} %")
        for r in rows
    ]  # fmt: skip
    examples = list(generations(view.artifact(name), evaluation.policies, evaluation.rewards))
    prompts = list(dict.fromkeys(g["prompt"] for g in examples))[:SHOWN_PROMPTS]
    shown = [
        (g["prompt"], g["policy"], g["response"], *(f"{g[f'reward.{r}']:.3f}" for r in evaluation.rewards))
        for g in examples
        if g["prompt"] in prompts and g["sample"] == 0
    ]
    note = (
        f"{evaluation.results['prompts']} prompts, {evaluation.results['samples_per_prompt']} answers each, the same random "
        f"numbers for every policy. Intervals: {percent} % BCa bootstrap over prompts; differences and win rates are paired."
    )
    return Markup("<h2>{}</h2><p>{}</p>{}{}<p>Numbers: <a href='{}'>{}</a></p><h3>Generations</h3>{}").format(
        name, note, figure, _table(columns, cells), f"{name}.csv", f"{name}.csv",
        _table(("prompt", "policy", "response", *evaluation.rewards), shown),
    )  # fmt: skip


def _best_of_section(name: str, evaluation: Evaluation, folder: Path) -> Iterator[Markup]:
    """What policies that choose among draws would be worth with fewer or more of them."""
    from flows.figures import best_of

    rows = list(evaluation.best_of())
    if not rows:
        return
    _write_csv(folder / f"{name}.best_of.csv", rows)
    figure = best_of(rows)
    (folder / f"{name}.best_of.svg").write_text(figure, encoding="utf-8")
    note = (
        f"The mean over all ways to choose so many of the {max(r['n'] for r in rows)} draws of a prompt, unbiased for fresh ones; "
        "the reward of a policy's own rule chooses. Bands are intervals over prompts."
    )
    yield Markup("<h3>The best of n draws</h3><p>{}</p>{}<p>Numbers: <a href='{}'>{}</a></p>").format(
        note, figure, f"{name}.best_of.csv", f"{name}.best_of.csv"
    )


def _verdicts_section(name: str, evaluation: Evaluation, folder: Path) -> Iterator[Markup]:
    """What judges say."""
    rows = list(evaluation.verdicts())
    if not rows:
        return
    _write_csv(folder / f"{name}.judges.csv", rows)
    note = (
        f"Each pair of answers, one of a policy and one of {evaluation.reference}, was shown in both orders. Position bias is the "
        "share of verdicts for the answer shown first (0.5 is none); agreement the share of pairs with one outcome in both orders."
    )
    table = _table(("policy", "judged by", *COLUMNS), [(r["policy"], r["judged_by"], *verdict_cells(r)) for r in rows])
    yield Markup("<h3>Judges</h3><p>{}</p>{}<p>Numbers: <a href='{}'>{}</a></p>").format(
        note, table, f"{name}.judges.csv", f"{name}.judges.csv"
    )


def _calibration_sections(view: View, records: dict[str, Any], folder: Path) -> list[Markup]:
    from flows.figures import uniformity

    sections = []
    for name in records:
        stored = view.stored(name)
        if stored is None or not (stored.folder / UNIFORMITY).exists():
            continue
        found = json.loads((stored.folder / UNIFORMITY).read_bytes())
        _write_csv(folder / f"{name}.csv", [{"value": u} for u in found["values"]])
        figure = uniformity(found["values"])
        (folder / f"{name}.svg").write_text(figure, encoding="utf-8")
        note = (
            f"{len(found['values'])} prompts, {records[name]['metrics']['samples']:.0f} rollouts each. The rank of one more draw of "
            f"the reference among them is uniform if the calibration holds: Kolmogorov-Smirnov {found['statistic']:.3f}, "
            f"p = {found['p_value']:.3f}."
        )
        sections.append(Markup("<h2>{}</h2><p>{}</p>{}<p>Numbers: <a href='{}'>{}</a></p>").format(
            name, note, figure, f"{name}.csv", f"{name}.csv"
        ))  # fmt: skip
    return sections


def _training_sections(view: View, records: dict[str, Any], folder: Path) -> list[Markup]:
    from flows.figures import curves

    sections = []
    for name in records:
        stored = view.stored(name)
        if stored is None or not (stored.folder / TRAINING).exists():
            continue
        rows = list(read_lines(stored.folder / TRAINING))
        _write_csv(folder / f"{name}.csv", rows)
        tests = [(k, f"{v:.4f}") for k, v in stored.record["metrics"].items()]
        sections.append(
            Markup("<h2>{}</h2>{}{}<p>Numbers: <a href='{}'>{}</a></p>").format(
                name, curves(rows), _table(("metric", "value"), tests), f"{name}.csv", f"{name}.csv"
            )
        )
    return sections


def _stages_section(view: View, records: dict[str, Any]) -> Markup:
    cells = []
    for name in view.planned:
        record = records.get(name)
        if record is None:
            cells.append((name, view.nodes[name].kind, view.nodes[name].fingerprint[:16], "not built", "", ""))
            continue
        found = ", ".join(f"{k} {v:.4g}" for k, v in record["metrics"].items() if not k.startswith("test/"))
        provenance = record["provenance"]
        cells.append(
            (
                name,
                record["kind"],
                record["fingerprint"][:16],
                f"{provenance['seconds']:.1f} s",
                found,
                provenance["finished"][:19],
            )
        )
    newest = max((r["provenance"] for r in records.values()), key=lambda p: p["finished"])
    packages = ", ".join(f"{k} {v}" for k, v in newest["packages"].items())
    code = newest["code"]
    commit = (
        f"{code['commit'][:12]}{' with uncommitted changes' if code['dirty'] else ''}"
        if code.get("commit")
        else "no checkout"
    )
    return Markup("<h2>Stages</h2>{}<p class=small>Seed {}. Code: {}. {} on {} ({} threads). {}</p>").format(
        _table(("stage", "kind", "fingerprint", "time", "result", "finished (UTC)"), cells),
        view.study.seed, commit, newest["device"], newest["platform"], newest["threads"], packages,
    )  # fmt: skip


def _table(columns: Sequence[str], rows: Sequence[Sequence[Any]]) -> Markup:
    head = Markup("").join(Markup("<th>{}</th>").format(c) for c in columns)
    body = Markup("\n").join(
        Markup("<tr>{}</tr>").format(Markup("").join(Markup("<td>{}</td>").format(c) for c in row)) for row in rows
    )
    return Markup("<div class=scroll><table><thead><tr>{}</tr></thead><tbody>\n{}\n</tbody></table></div>").format(
        head, body
    )


def _spread(row: dict[str, Any], name: str, digits: int = 3) -> str:
    return f"{row[name]:.{digits}f} [{row[f'{name}_low']:.{digits}f}, {row[f'{name}_high']:.{digits}f}]"


def _write_csv(path: Path, rows: list[dict[str, Any]]) -> None:
    columns = list(dict.fromkeys(key for row in rows for key in row))
    with path.open("w", encoding="utf-8", newline="") as file:
        writer = csv.DictWriter(file, columns)
        writer.writeheader()
        writer.writerows(rows)


_STYLE = """
body { font: 15px/1.5 system-ui, sans-serif; max-width: 72rem; margin: 2rem auto; padding: 0 1.5rem; color: #1f2328; background: #fff }
h1, h2, h3 { line-height: 1.2 } h2 { margin-top: 2.5rem; border-bottom: 1px solid #d0d7de; padding-bottom: .3rem }
table { border-collapse: collapse; font-size: 13px; font-variant-numeric: tabular-nums }
th, td { border: 1px solid #d0d7de; padding: .3rem .6rem; text-align: left; vertical-align: top } th { background: #f6f8fa }
.scroll { overflow-x: auto; max-height: 36rem } .small { font-size: 12px; color: #59636e } svg { max-width: 100%; height: auto }
.verdicts li { margin: .3rem 0 }
"""


def _page(name: str, sections: Sequence[Markup]) -> str:
    body = "\n".join(map(str, sections))
    return (
        f"<!doctype html>\n<html lang=en><head><meta charset=utf-8><title>{escape(name)}</title>"
        f"<meta name=viewport content='width=device-width'><style>{_STYLE}</style></head><body>\n{body}\n</body></html>\n"
    )
