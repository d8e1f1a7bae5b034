"""What a person would want to look into beside the comparison itself: audits, several seeds together, what judges said."""

from __future__ import annotations

from markupsafe import Markup

from flows.beside import Beside
from flows.page import folded, paragraph, section, table
from flows.wording import spread
from tasks.evaluation_table import Evaluation
from tasks.verdict_table import COLUMNS, verdict_cells


def audits(name: str, evaluation: Evaluation, beside: Beside) -> Markup:
    """Each audit is a number with its interval, and no verdict."""
    met = evaluation.met()
    parts = [paragraph(f"{met[0].upper()}{met[1:]}.")] if met else []
    if rows := list(evaluation.apart()):
        parts += [
            paragraph(
                "How much more a policy gained of the reward that guides it than of one that does not, in standard deviations of the "
                "reference's answers: above 0 where the guide was pleased at more than the other was."
            ),
            table(
                ("policy", "guide", "other reward", "gained more"),
                [(r["policy"], r["guide"], r["gold"], spread(r, "gained_more")) for r in rows],
                "guiding reward against the others",
            ),
            _numbers(beside.numbers(f"{name}.apart", rows)),
        ]
    if rows := [row for row in evaluation.rows() if "length_bias" in row]:
        rows.sort(key=lambda row: -abs(row["length_bias"]))
        of_lengths = [(r["policy"], r["judged_by"], spread(r, "length_bias"), r["length_bias_prompts"]) for r in rows]
        told = "Within a prompt, the rank correlation of an answer's reward with its length, the largest first; over prompts with both"
        shown = table(("policy", "judged by", "correlation", "prompts"), of_lengths, "length bias")
        parts += [folded(f"{told} ({len(rows)})", shown)]
    if rows := [row for row in evaluation.policy_rows() if "copied_words" in row]:
        told = (
            "The share of words that stand in runs of eight which occur in answers that the policy was trained on, and the share of "
            "answers that are such an answer as a whole. Policies that are not named were trained on none, or on some that were "
            "not kept."
        )
        cells = [(r["policy"], spread(r, "copied_words"), spread(r, "copied_whole")) for r in rows]
        parts += [paragraph(told), table(("policy", "words", "whole answers"), cells, "what was copied")]
    return section("Audits", *parts, level=3) if parts else Markup("")


def seeds(name: str, evaluation: Evaluation, beside: Beside) -> Markup:
    """Policies that differ by the seed of their training alone."""
    rows = list(evaluation.over_seeds())
    if not rows:
        return Markup("")
    told = (
        "Trainings that differ by their seed alone, taken together: intervals are over seeds and prompts, and wide where few seeds "
        "differ much."
    )
    cells = [(r["policies"], r["judged_by"], spread(r, "reward"), spread(r, "difference")) for r in rows]
    heads = ("policies", "judged by", "reward", f"difference to {evaluation.reference}")
    shown = table(heads, cells, "several seeds together")
    return section("Over seeds", paragraph(told), shown, _numbers(beside.numbers(f"{name}.seeds", rows)), level=3)


def judged(name: str, evaluation: Evaluation, beside: Beside) -> Markup:
    """What language models said of pairs of answers."""
    rows = list(evaluation.verdicts())
    if not rows:
        return Markup("")
    told = (
        f"Each pair of answers, one of a policy and one of {evaluation.reference}, was shown in both orders. Position bias is the "
        "share of verdicts for the answer shown first (0.5 is none); agreement the share of pairs with one outcome in both orders."
    )
    cells = [(r["policy"], r["judged_by"], *verdict_cells(r)) for r in rows]
    shown = table(("policy", "judged by", *COLUMNS), cells, "verdicts of judges")
    return section("Judges", paragraph(told), shown, _numbers(beside.numbers(f"{name}.judges", rows)), level=3)


def _numbers(file: str) -> Markup:
    return Markup("<p class=small>Numbers: <a href='{}'>{}</a></p>").format(file, file)
