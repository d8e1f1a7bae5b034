"""One comparison of the report: what was asked, what was found, the table, the figures, the answers."""

from __future__ import annotations

from typing import NamedTuple

from markupsafe import Markup

from flows.beside import Beside
from flows.fronts import fronts
from flows.optimisation import over_optimisation
from flows.page import section
from flows.report_audits import audits, judged, seeds
from flows.report_generations import side_by_side
from flows.report_question import expected, question, verdicts
from flows.report_spending import equal_spending
from flows.report_table import differences, every_number, main_table
from flows.report_traces import traces
from flows.theme import looks
from tasks.evaluation_table import Evaluation, generations, named
from tasks.view import View


class Comparison(NamedTuple):
    """Of an `evaluate` stage that is stored, what stands at the top of the report, and its section."""

    name: str
    question: Markup
    found: Markup

    @classmethod
    def of(cls, view: View, name: str, beside: Beside) -> Comparison:
        evaluation = named(view.artifact(name))
        return cls(name, question(view, name, evaluation), _found(view, name, evaluation, beside))


def _found(view: View, name: str, evaluation: Evaluation, beside: Beside) -> Markup:
    artifact = view.artifact(name)
    seen = looks(evaluation.policies)
    answers = list(generations(artifact, evaluation.policies, evaluation.rewards))
    spending = equal_spending(name, evaluation, seen, beside)
    parts = [
        expected(view, name),
        verdicts(evaluation),
        differences(name, evaluation, seen, beside),
        section(
            "The table",
            main_table(name, evaluation, seen, beside),
            every_number(evaluation),
            level=3,
        ),
        judged(name, evaluation, beside),
        seeds(name, evaluation, beside),
        section("At equal spending", spending, level=3) if spending else "",
        fronts(name, evaluation, view.study.stages, seen, beside),
        over_optimisation(name, evaluation, view.study.stages, answers, beside),
        audits(name, evaluation, beside),
        side_by_side(evaluation, answers, seen),
        traces(evaluation, artifact),
    ]
    return section(f"Comparison {name}", *parts, anchor=name)
