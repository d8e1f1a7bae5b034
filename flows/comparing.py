"""`alignflow compare`: policies of several studies side by side, paired prompt by prompt where they answered the same ones.

Everything is reckoned anew from the stored answers' rewards, so the studies need know nothing of each other. What was judged by
different rewards, or on different prompts, is not comparable and is left out, with the reason.
"""

from __future__ import annotations

import json
import sys
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray
from rich.console import Console
from rich.table import Table

from flows.wording import divergence, p_value
from registry.artifacts import Artifact
from registry.methods.comparison import interval, rate_interval, win_rates
from registry.methods.significance import draws_for, holm, permutation_p
from registry.rows import Prompt
from specs.evaluation import Evaluate
from specs.problems import UserError, did_you_mean, listed
from tasks.evaluation_table import GENERATIONS, Evaluation, named
from tasks.inputs import read_lines
from tasks.lineage import Role
from tasks.view import View

Array = NDArray[np.float64]

FEWEST = 2
"""Prompts in common with the reference: with fewer there is no interval."""


@dataclass(frozen=True)
class Entrant:
    """A policy as one evaluation saw it."""

    name: str
    """`study:policy`, with the evaluation between the two where a study has several, and `study#2:policy` of the second one given
    where several have one name."""
    fingerprint: str
    limits: str
    """What its answers were allowed: under other limits they are other things."""
    rewards: dict[str, dict[str, list[float]]]
    """By a reward's fingerprint and a prompt's id, of each sample."""
    parts: dict[str, Role]
    """What part each of those rewards had in the policy."""
    is_random: bool
    """Whether it draws: of two that do, samples of one number share their random numbers."""
    kl: dict[str, tuple[str, Mapping[str, float]]]
    """By the fingerprint of the policy from whose model it was measured: the estimate's name and interval, in nats."""
    positions: float
    """Forward positions of an answer, of its model and its guides."""
    also: tuple[str, ...] = ()
    """Its names in evaluations that found the same answers of it."""

    @property
    def names(self) -> tuple[str, ...]:
        return self.name, *self.also


@dataclass(frozen=True)
class Comparison:
    """What can be said of the entrants together."""

    reference: str
    rows: list[dict[str, Any]]
    """One for each reward and entrant: the reward's part in it; mean reward, difference, win rate and divergence (from the model of
    the reference) with the ends of their intervals, and how the divergence is known; p-values; the forward positions of an answer."""
    left_out: list[str]
    """Sentences: who is not in `rows`, and why."""
    confidence: float


def compare(views: Sequence[View], against: str | None = None) -> Comparison:
    """Raises `UserError` where there is nothing to compare, or no entrant is called `against` (the first study's reference)."""
    reference, entrants, names, settings = _entrants(views)
    if against is not None:
        if against not in (known := [name for e in entrants for name in e.names]):
            raise UserError(f"there is no `{against}`{did_you_mean(against, known) or f'; there are {listed(known)}'}")
        reference = against
    (base,) = (e for e in entrants if reference in e.names)
    reference = base.name
    stored = {id(view) for _, view, *_ in _evaluations(views)}
    left_out = [
        f"{view.study.name}: it has no stored `evaluate` stage; run it" for view in views if id(view) not in stored
    ]
    rows = []
    fit = [e for e in entrants if e.limits == base.limits]
    draws = draws_for(len(fit) - 1, resamples=settings["resamples"])
    for entrant in entrants:
        if entrant not in fit:
            left_out.append(f"{entrant.name}: its answers had other limits ({entrant.limits}, not {base.limits})")
        elif entrant.kl and base.fingerprint not in entrant.kl:
            left_out.append(f"{entrant.name}, its divergence: it was not measured from the model of {reference}")
    for reward, by_prompt in base.rewards.items():
        found = []
        for entrant in fit:
            shared = [p for p in entrant.rewards.get(reward, {}) if p in by_prompt]
            if len(shared) < FEWEST:
                few = f"{len(shared)} prompts in common with {reference}"
                why = few if reward in entrant.rewards else f"it {_unasked(reward, entrant, names)}"
                left_out.append(f"{entrant.name} by {names[reward]}: {why}")
                continue
            ours, theirs = (np.array([side[reward][p] for p in shared]) for side in (entrant.rewards, base.rewards))
            row = _row(reward, names[reward], entrant, base, ours, theirs, draws, settings)
            if "win_rate" not in row:
                left_out.append(
                    f"{entrant.name} by {names[reward]}, its win rate: with one sample a prompt it shares its random numbers with "
                    f"{reference}'s"
                )
            found.append(row)
        others = [row for row in found if row["policy"] != reference]
        for row, p in zip(others, holm([row["p"] for row in others]), strict=True):
            row["p_holm"] = p
        rows += found
    for entrant in fit:
        for reward in (r for r in entrant.rewards if r not in base.rewards):
            left_out.append(f"{entrant.name} by {names[reward]}: {reference} {_unasked(reward, base, names)}")
    return Comparison(reference, rows, left_out, settings["confidence"])


def _unasked(reward: str, entrant: Entrant, names: Mapping[str, str]) -> str:
    """How it comes that an entrant has no value by a reward."""
    own = {names[one].rpartition(":")[2]: names[one] for one in entrant.rewards}
    another = own.get(names[reward].rpartition(":")[2])
    return f"was asked `{another}`, which is another reward" if another else "was not asked"


def _row(
    reward: str,
    name: str,
    entrant: Entrant,
    base: Entrant,
    ours: Array,
    theirs: Array,
    draws: int,
    settings: dict[str, Any],
) -> dict[str, Any]:
    difference = ours.mean(axis=1) - theirs.mean(axis=1)
    row: dict[str, Any] = {
        "policy": entrant.name, "against": base.name, "judged_by": name, "reward_fingerprint": reward[:16],
        "part": entrant.parts[reward], "prompts": len(ours),
    }  # fmt: skip
    values = {"reward": ours.mean(axis=1), "difference": difference}
    if entrant is base or min(ours.shape[1], theirs.shape[1]) > 1 or not (entrant.is_random and base.is_random):
        values["win_rate"] = win_rates(ours, theirs)
    for what, each in values.items():
        found = (rate_interval if what == "win_rate" else interval)(each, **settings)
        row |= {what: found.estimate, f"{what}_low": found.low, f"{what}_high": found.high}
    # From another reference it would be another distance.
    if base.fingerprint in entrant.kl:
        how, kl = entrant.kl[base.fingerprint]
        row |= {"kl": kl["estimate"], "kl_low": kl["low"], "kl_high": kl["high"], "kl_estimator": how}
    row["positions_per_answer"] = entrant.positions
    if entrant is not base:
        row["p"] = permutation_p(difference, resamples=draws, seed=settings["seed"])
    return row


def _entrants(views: Sequence[View]) -> tuple[str, list[Entrant], dict[str, str], dict[str, Any]]:
    """The reference of the first evaluation, every entrant once with all that was found of it, the rewards' names (`study:reward` of
    another one that is called as an earlier one is), and the first evaluation's intervals."""
    reference: str | None = None
    entrants: list[Entrant] = []
    names: dict[str, str] = {}
    settings: dict[str, Any] = {}
    studies = Counter(view.study.name for view in views)
    for number, view, name, artifact in _evaluations(views):
        evaluation = named(artifact)
        several = sum(isinstance(e, Evaluate) for e in view.study.stages.values()) > 1
        study = view.study.name if studies[view.study.name] == 1 else f"{view.study.name}#{number}"
        place = f"{study}:{name}" if several else study
        prints = evaluation.results["rewards"]
        for mark, reward in zip(prints, evaluation.rewards, strict=True):
            names.setdefault(mark, f"{place}:{reward}" if reward in names.values() else reward)
        for entrant in _of(artifact, place, evaluation):
            if entrant.name == f"{place}:{evaluation.reference}" and reference is None:
                reference = entrant.name
                entry: Any = artifact.entry
                settings = {
                    "confidence": entry.confidence,
                    "resamples": entry.resamples,
                    "seed": artifact.fields["seed"],
                }
            at = next((i for i, e in enumerate(entrants) if _is_same(entrant, e)), None)
            if at is None:
                entrants.append(entrant)
            else:
                entrants[at] = _joined(entrants[at], entrant)
    if reference is None:
        raise UserError("none of these studies has a stored `evaluate` stage; `alignflow run` them first")
    return reference, entrants, names, settings


def _is_same(one: Entrant, other: Entrant) -> bool:
    """Whether it is one policy that gave the same answers, as far as both evaluations asked the same rewards."""
    if one.fingerprint != other.fingerprint or one.limits != other.limits:
        return False
    shared = one.rewards.keys() & other.rewards.keys()
    return bool(shared) and all(one.rewards[reward] == other.rewards[reward] for reward in shared)


def _joined(one: Entrant, again: Entrant) -> Entrant:
    """With what another evaluation found of it besides."""
    return replace(
        one,
        rewards=again.rewards | one.rewards,
        parts=again.parts | one.parts,
        kl=again.kl | one.kl,
        also=(*one.also, again.name),
    )


def _evaluations(views: Sequence[View]) -> Iterator[tuple[int, View, str, Artifact]]:
    """With the number of the study among those that were given, from 1."""
    for number, view in enumerate(views, 1):
        for name, entry in view.study.stages.items():
            if isinstance(entry, Evaluate) and view.stored(name) is not None:
                yield number, view, name, view.artifact(name)


def _of(artifact: Artifact, place: str, evaluation: Evaluation) -> list[Entrant]:
    assert artifact.folder is not None
    policies, results = evaluation.policies, evaluation.results
    rewards = results["rewards"]
    values: list[dict[str, dict[str, list[float]]]] = [{reward: {} for reward in rewards} for _ in policies]
    for row in read_lines(artifact.folder / GENERATIONS):
        prompt = Prompt(tuple(row["prompt"])).id
        for reward, value in zip(rewards, row["rewards"], strict=True):
            values[row["policy"]][reward].setdefault(prompt, []).append(value)
    limits = f"{results['max_new_tokens']} new tokens, {results['samples_per_prompt']} samples a prompt"
    random = {a.fingerprint: a.entry.is_random for slot in ("policies", "against") for a in artifact.inputs[slot]}
    found = []
    for policy, told, own, roles in zip(policies, results["policies"], values, evaluation.roles, strict=True):
        mark, kl = told["fingerprint"], evaluation.kl(policy)
        found.append(
            Entrant(
                f"{place}:{policy}",
                mark,
                limits,
                own,
                parts=dict(zip(rewards, roles, strict=True)),
                is_random=random[mark],
                kl={} if kl is None else {evaluation.fingerprint(evaluation.reference): kl},
                positions=evaluation.positions(policy),
            )
        )
    return found


def tables(comparison: Comparison) -> Iterator[Table]:
    """One for each reward, the largest difference first."""
    percent = f" (intervals of {100 * comparison.confidence:g} %)"
    for reward in dict.fromkeys(row["reward_fingerprint"] for row in comparison.rows):
        rows = [row for row in comparison.rows if row["reward_fingerprint"] == reward]
        table = Table(
            title=f"judged by {rows[0]['judged_by']}, against {comparison.reference}{percent}",
            title_justify="left",
            caption=f"KL from the model of {comparison.reference}",
            caption_justify="left",
        )
        columns = ("policy", "part", "prompts", "reward", "difference", "win rate", "p (Holm)", "KL, nats", "positions")
        for column in columns:
            table.add_column(column)
        # Rewards are of the prompts that a policy shares with the reference, so that differences alone have one scale.
        for row in sorted(rows, key=lambda row: -row["difference"]):
            spread = (
                f"{row[w]:.3f} [{row[f'{w}_low']:.3f}, {row[f'{w}_high']:.3f}]" if w in row else ""
                for w in ("reward", "difference", "win_rate")
            )
            table.add_row(
                row["policy"],
                row["part"],
                str(row["prompts"]),
                *spread,
                p_value(row["p_holm"]) if "p_holm" in row else "",
                divergence((row["kl_estimator"], {"estimate": row["kl"]})) if "kl" in row else "",
                f"{row['positions_per_answer']:,.0f}",
            )
        yield table


def show_comparison(views: Sequence[View], against: str | None, *, as_json: bool) -> None:
    """Prints it."""
    found = compare(views, against)
    if as_json:
        print(json.dumps(asdict(found), indent=1))
        return
    screen = Console(width=None if sys.stdout.isatty() else 160, highlight=False, markup=False)
    for table in tables(found):
        screen.print(table)
    for line in found.left_out:
        print(f"left out: {line}")
