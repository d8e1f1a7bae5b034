"""The comparison of policies: one set of prompts, one budget, the same random numbers, honest intervals."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Mapping
from operator import ge, gt, le, lt
from typing import TYPE_CHECKING, Annotated, ClassVar, Literal

from pydantic import Field

from specs.base import Count, NotIdentity, Spec, form
from specs.decoding import Several
from specs.judges import pair_problems
from specs.problems import Path, did_you_mean, listed
from specs.references import EvaluationReward, GivenAnswers, Judges, Policy, Prompts
from specs.stage import Seeded

if TYPE_CHECKING:
    from specs.graph import Graph

_BAR = re.compile(r"(>=|<=|>|<)\s*(-?[0-9]+(?:\.[0-9]+)?)")
_COMPARISONS: dict[str, Callable[[float, float], bool]] = {">=": ge, "<=": le, ">": gt, "<": lt}

Bar = Annotated[str, form(f"^{_BAR.pattern}$", "a bar is written `>= 0.55`, with >=, <=, > or <")]


def meets(bar: str, value: float) -> bool:
    """Whether `value` meets a bar such as `>= 0.55`."""
    found = _BAR.fullmatch(bar)
    assert found is not None  # the pattern of `Bar`
    return _COMPARISONS[found.group(1)](value, float(found.group(2)))


def surely_meets(bar: str, interval: Mapping[str, float]) -> bool:
    """Whether the end of the interval that is nearer to failing meets the bar."""
    return meets(bar, interval["low" if bar.startswith(">") else "high"])


def read_bar(text: str) -> tuple[str, str] | None:
    """The metric and the bar of a text such as `win_rate.gold >= 0.55`."""
    found = re.fullmatch(rf"\s*([A-Za-z][^\s<>=]*)\s*({_BAR.pattern})\s*", text)
    return (found[1], found[2]) if found else None


class Budget(Spec):
    """What each policy may spend on a prompt."""

    max_new_tokens: Count = 64
    """The most tokens of a response."""
    samples_per_prompt: Count = 2
    """Responses to each prompt; each counts as one draw of the policy, however many candidates it looked at. Policies
    share their random numbers, so a win rate compares a sample with those of other numbers: at least two are
    needed unless all but one policy are greedy."""


class Behind(Spec):
    """A procedure that every policy is put behind, with the judging reward choosing: what a policy is worth to who asks n
    times (InfAlign, arXiv 2412.19792). It needs 2 n samples a prompt."""

    method: Literal["best_of_n", "worst_of_n"]
    """The best of n samples, or the worst of them, as an attacker gets who may try n times."""
    n: Several
    """How many samples the judging reward chooses among."""

    @property
    def metric(self) -> str:
        """The name of its win rate."""
        return f"{self.method.removesuffix('n')}{self.n}_win_rate"


class Evaluate(Seeded):
    """Each policy on the same prompts: rewards, win rates against a reference, how far from the reference, what it costs, what
    its answers are like; with paired bootstrap intervals over prompts."""

    produces: ClassVar[str] = "evaluation"
    version: ClassVar[int] = 8

    do: Literal["evaluate"]
    policies: Annotated[tuple[Policy, ...], Field(min_length=1)]
    """The policies to compare."""
    against: Policy
    """The policy that win rates and differences are measured against."""
    prompts: Prompts
    """Held-out prompts."""
    rewards: Annotated[tuple[EvaluationReward, ...], Field(min_length=1)]
    """The rewards that judge."""
    judges: Annotated[tuple[Judges, ...], Field(max_length=8)] = ()
    """The judges that compare each policy's answers with those of `against`."""
    budget: Budget = Budget()
    """What each policy may spend."""
    inference: Annotated[tuple[Behind, ...], Field(max_length=8)] = ()
    """Win rates with both sides behind a procedure, beside the plain ones: `{method: best_of_n, n: 4}`."""
    perplexity_of: GivenAnswers | None = None
    """Preference pairs whose chosen answers each language model is to give a perplexity to (how well it models answers that
    are not its own). The perplexity of its own answers under the reference is always there."""
    resamples: Annotated[int, Field(strict=True, ge=100)] = 2000
    """Bootstrap resamples of the prompts, and draws of signs for a p-value; of signs more where many policies are compared."""
    confidence: Annotated[float, Field(strict=True, gt=0, lt=1)] = 0.95
    """The coverage of the intervals."""
    expect: Annotated[dict[Policy, dict[str, Bar]], NotIdentity()] = {}
    """Bars to meet, by policy and metric: `{bon: {win_rate.gold: ">= 0.55"}}`. Metrics are
    `reward.<name>`, `win_rate.<name>`, `best_of_4_win_rate.<name>` where `inference` asks for it, `judge.<name>` (the win rate by
    a judge), and `length`. A missed bar is exit status 3."""

    @property
    def judged(self) -> list[str]:
        """The metrics that there are one of for each reward."""
        return ["reward", "win_rate", *(behind.metric for behind in self.inference)]

    def problems(self, graph: Graph) -> Iterator[tuple[Path, str]]:
        for key, names in (("policies", self.policies), ("rewards", self.rewards)):
            for i, name in enumerate(names):
                if name in names[:i]:
                    yield (key, i), f"`{name}` stands here twice"
        yield from self._expectation_problems(graph)
        yield from self._sample_problems(graph)
        yield from pair_problems(self.judges, self.budget.samples_per_prompt, graph)
        for i, behind in enumerate(self.inference):
            if self.budget.samples_per_prompt < 2 * behind.n:
                message = (
                    f"{behind.n} samples on both sides that share no random numbers are {2 * behind.n} a prompt; raise "
                    f"`budget.samples_per_prompt` from {self.budget.samples_per_prompt}"
                )
                yield ("inference", i, "n"), message

    def _expectation_problems(self, graph: Graph) -> Iterator[tuple[Path, str]]:
        policies = self.compared(graph)
        if not all(graph.members(name) for name in self.rewards):
            return  # said already
        known = self.metrics(graph)
        for policy, bars in self.expect.items():
            here: Path = ("expect", policy)
            if any(m not in policies for m in graph.members(policy)):
                yield here, f"`{policy}` is not among this stage's `policies`"
            for metric, bar in bars.items():
                if metric not in known:
                    hint = did_you_mean(metric, known) or f"; there are {listed(known)}"
                    yield (*here, metric), f"`{metric}` is not a metric of this stage{hint}"
                elif ("win_rate" in metric or metric.startswith("judge.")) and not (meets(bar, 0) or meets(bar, 1)):
                    yield (*here, metric), f"no win rate can be `{bar}`: it lies between 0 and 1"

    def _sample_problems(self, graph: Graph) -> Iterator[tuple[Path, str]]:
        """One sample a prompt leaves a win rate no pair of independent samples (`registry.methods.comparison`)."""
        against, *others = (
            {m for m in graph.members(name) if graph.nodes[m].entry.is_random}
            for name in (self.against, *self.policies)
        )
        if self.budget.samples_per_prompt == 1 and against and set().union(*others) - against:
            message = "policies share their random numbers, so a win rate needs at least 2 samples a prompt"
            yield ("budget", "samples_per_prompt"), message

    def compared(self, graph: Graph) -> set[str]:
        """The policies, those of sweeps one by one."""
        return {member for name in self.policies for member in graph.members(name)}

    def metrics(self, graph: Graph) -> list[str]:
        """What a bar may be set for."""
        rewards = [member for name in self.rewards for member in graph.members(name)]
        known = [f"{what}.{name}" for what in self.judged for name in rewards]
        return [
            *known,
            *(self.judged if len(rewards) == 1 else ()),
            *(f"judge.{name}" for name in self.judges),
            "length",
        ]

    def full(self, metric: str, graph: Graph) -> str:
        """A metric's full name: `win_rate` by the only reward `gold` is `win_rate.gold`."""
        return f"{metric}.{graph.members(self.rewards[0])[0]}" if metric in self.judged else metric

    def bars(self, graph: Graph) -> dict[str, dict[str, str]]:
        """What is expected, by member policy and full metric name."""
        found: dict[str, dict[str, str]] = {}
        for policy, metrics in self.expect.items():
            for member in graph.members(policy):
                for metric, bar in metrics.items():
                    found.setdefault(member, {})[self.full(metric, graph)] = bar
        return found
