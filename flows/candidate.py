"""What is to be promoted: a policy of a past run, and everything about it that can be known, or be wrong, beforehand.

It does not import Prefect, which reads its server's address when it is imported.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass

from flows.past_runs import PastRun, past_run
from flows.summary import evaluation_markdown
from registry.home import make_home
from specs.problems import UserError, did_you_mean, listed
from tasks.evaluation_table import named
from tasks.gates import Gate, evaluations, gates
from tasks.registering import check_names, content
from tasks.view import View

LONGEST = 5000  # characters that MLflow keeps of a description or a tag
POLICIES = ("language model", "decoding rule")


@dataclass(frozen=True)
class Candidate:
    """A policy that may be promoted, and what was found of it."""

    past: PastRun
    stage: str
    name: str
    alias: str
    gates: tuple[Gate, ...]

    @property
    def view(self) -> View:
        return self.past.view

    @property
    def missed(self) -> list[str]:
        return [str(gate) for gate in self.gates if not gate.is_met]

    def tags(self) -> dict[str, str]:
        """What a version says of its policy beside its files."""
        step = self.view.nodes[self.stage]
        tags = {"study": self.view.study.name, "stage": self.stage, "kind": step.kind, "run": self.past.id}
        tags["gates"] = "; ".join(map(str, self.gates)) or "none"
        return {f"alignflow.{key}": value[:LONGEST] for key, value in tags.items()}

    def description(self) -> str:
        """In Markdown: where it comes from, its gates, and it beside the reference in the evaluations that compared it."""
        step = self.view.nodes[self.stage]
        lines = [
            f"`{self.stage}` ({step.kind}, {step.fingerprint[:16]}) of `{self.view.study.name}`, run {self.past.id}.",
            "",
        ]
        lines += [f"- {gate}" for gate in self.gates] or ["No bar was set for it."]
        for name in evaluations(self.view, self.stage):
            if self.view.stored(name) is not None:
                found = named(self.view.artifact(name))
                lines += ["", f"### {name}", "", evaluation_markdown(found, {self.stage, found.reference})]
        return "\n".join(lines)[:LONGEST]


def _how(view: View, stage: str) -> str:
    """How a bar is set for the policy, in words that may be copied."""
    judged = next(iter(evaluations(view, stage).values()), None)
    if judged is None:
        return "compare it in an evaluation that has an `expect:` for it, or"
    bar, quoted = f"win_rate.{judged.rewards[0]}", json.dumps(stage) if "[" in stage else stage
    return (
        f"set a bar in an evaluation (`expect: {{{quoted}: {{{bar}: \">= 0.5\"}}}}`) or by --expect '{bar} >= 0.5', or"
    )


def candidate(run: str, stage: str, alias: str, name: str | None, expect: Sequence[str], *, ungated: bool) -> Candidate:
    """What is to be promoted, everything about it that can be wrong checked. Raises `UserError`."""
    past = past_run(run, make_home())
    name = name or past.view.study.name
    check_names(name, alias)
    past.stored(stage)
    produces = past.view.nodes[stage].node.produces
    if produces not in POLICIES:
        those = [n for n, s in past.view.nodes.items() if s.is_stage and s.node.produces in POLICIES]
        raise UserError(f"`{stage}` is no policy ({produces}); there are {listed(those)}{did_you_mean(stage, those)}")
    content(past.view, stage)
    found = gates(past.view, stage, expect)
    if not found and not ungated:
        raise UserError(f"nothing says how good `{stage}` must be: {_how(past.view, stage)} promote it --ungated")
    return Candidate(past, stage, name, alias, tuple(found))
