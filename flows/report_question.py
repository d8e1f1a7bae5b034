"""What a comparison asked, in one sentence out of the study, and what it found, in one sentence for each difference."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from markupsafe import Markup

from flows.expectations import expectations
from flows.page import bullets, folded, joined, paragraph, table
from flows.reward_roles import order, part
from flows.wording import ends, p_value
from registry.methods.significance import can_tell
from specs.evaluation import Evaluate
from tasks.evaluation_table import Evaluation
from tasks.view import View

FEW = 6
"""So many differences are told at once."""


def question(view: View, name: str, evaluation: Evaluation) -> Markup:
    """Which policies, against what, on which prompts, judged by which rewards, sampled how."""
    entry = view.study.stages[name]
    assert isinstance(entry, Evaluate)
    named = [policy for policy in entry.policies if policy != entry.against]
    judges = [f"{evaluation.rewards[place]} ({part(evaluation, place)})" for place in order(evaluation)]
    samples = evaluation.results["samples_per_prompt"]
    seed = view.study.seed if entry.seed is None else entry.seed
    asked = (
        f"How {'does' if len(evaluation.policies) == 2 else 'do'} {listed(named)} compare with {entry.against}"
        if named
        else f"What are answers of {entry.against} worth"
    )
    return paragraph(
        f"{asked}, judged by {listed(judges)}? Each policy gave {samples} {'answer' if samples == 1 else 'answers'} of at most "
        f"{evaluation.results['max_new_tokens']} tokens to each of {evaluation.results['prompts']} prompts ({entry.prompts}), "
        f"all with the same random numbers (seed {seed}).",
        "lead",
    )


def listed(names: Sequence[str]) -> str:
    """`a, b and c`."""
    return " and ".join([*([", ".join(names[:-1])] if names[:-1] else []), *names[-1:]])


def verdicts(evaluation: Evaluation) -> Markup:
    """By reward, how many policies are told apart from the reference, and each difference in a sentence; of the reward
    that had the least part in the policies at once."""
    found: list[Markup] = []
    for place in order(evaluation):
        reward = evaluation.rewards[place]
        rows = [r for r in evaluation.rows() if r["judged_by"] == reward and r["policy"] != evaluation.reference]
        if not rows:
            continue
        confidence = evaluation.results["confidence"]
        counts = [
            (word, sum(standing(row, confidence) == word for row in rows))
            for word in ("higher", "lower", "not told apart")
        ]
        summary = f"Judged by {reward} ({part(evaluation, place)}): " + ", ".join(
            f"{many} {word}" for word, many in counts if many
        )
        # One policy under several names is one comparison, and under another name the reference is none.
        counted = {evaluation.fingerprint(row["policy"]): row["p_holm"] for row in rows if "p_holm" in row}
        if len(counted) > 1:
            many = sum(p <= 1 - confidence for p in counted.values())
            summary += f"; with all {len(counted)} policies counted (Holm), {many or 'none'} told apart"
        lines = bullets([verdict(row, confidence, len(counted)) for row in rows], "verdicts")
        found.append(folded(summary, lines, is_open=not found and len(rows) <= FEW))
    return joined(found)


def expected(view: View, name: str) -> Markup:
    """The bars of the study's `expect:` beside what was found."""
    bars = list(expectations(view, name))
    if not bars:
        return Markup("")
    missed = sum(not bar.met for bar in bars)
    told = f"{missed} of {len(bars)} expectations missed" if missed else f"{_all(len(bars))} met"
    rows = [(b.policy, b.metric, b.bar, f"{b.found:.3f}", "met" if b.met else "missed") for b in bars]
    shown = table(("policy", "metric", "expected", "found", ""), rows, "expectations")
    return folded(told, shown, is_open=bool(missed))


def _all(many: int) -> str:
    return "The one expectation was" if many == 1 else f"All {many} expectations were"


def standing(row: Mapping[str, Any], confidence: float) -> str:
    """What the interval of the paired difference says, and no more; of a few prompts it says nothing."""
    if not can_tell(row["prompts"], confidence=confidence):
        return "not told apart"
    if row["difference_low"] > 0:
        return "higher"
    return "lower" if row["difference_high"] < 0 else "not told apart"


def verdict(row: Mapping[str, Any], confidence: float, comparisons: int = 1) -> str:
    """A difference to the reference in words. `comparisons` are all that were counted under its reward."""
    stands = standing(row, confidence)
    word = {"higher": "higher than", "lower": "lower than", "not told apart": "not told apart from"}[stands]
    text = (
        f"Judged by {row['judged_by']}, {row['policy']} is {word} {row['against']}: difference "
        f"{row['difference']:+.3f} [{row['difference_low']:+.3f}, {row['difference_high']:+.3f}], win rate "
        f"{row['win_rate']:.3f} {ends(row['win_rate_low'], row['win_rate_high'])} on {row['prompts']} prompts"
    )
    if "p" in row:
        text += f"; {p_value(row['p'])}"
    if "p_holm" in row and comparisons > 1:
        text += f", {p_value(row['p_holm'])} with all {comparisons} policies counted (Holm)"
    if "detectable" in row and stands == "not told apart":
        text += f". A difference of {row['detectable']:.3f} would by itself have been found four times in five"
    return text + "."
