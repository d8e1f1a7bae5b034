"""Audits of an evaluation: what a person would want to look into, each a number with an interval and no verdict."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from registry import data
from registry.artifacts import Artifact
from registry.methods.audits import divergence_of_gold
from registry.methods.comparison import over_seeds
from registry.methods.repetition import TrainingTexts
from registry.rows import Pair, Prompt
from specs.data import Data
from specs.plan import canonical
from tasks.drawing import Answer
from tasks.inputs import PAIRS, RESPONSES, read_lines
from tasks.lineage import direct, made_on, role
from tasks.properties import Properties

Array = NDArray[np.float64]


class Learnt:
    """What policies were trained on; of policies that were trained on the same it is read once."""

    def __init__(self) -> None:
        self._known: dict[frozenset[str], TrainingTexts] = {}

    def by(self, policy: Artifact) -> TrainingTexts | None:
        """None of a policy that was trained on no stored answers, or on some that are not here: a promoted model does not bring
        them."""
        sources = {f"{source.fingerprint}.{source.part}": source for source in _sources(policy)}
        if not sources or not all(map(_is_here, sources.values())):
            return None
        mark = frozenset(sources)
        if mark not in self._known:
            self._known[mark] = TrainingTexts(text for source in sources.values() for text in _answers_in(source))
        return self._known[mark]


class Met:
    """Which of an evaluation's prompts its policies knew; each data set is read once."""

    def __init__(self, prompts: Sequence[Prompt]) -> None:
        self._asked = [prompt.id for prompt in prompts]
        self._known: dict[str, frozenset[str]] = {}

    def by(self, policy: Artifact) -> dict[str, int]:
        """How many of them stand, word for word, among those that the policy and its guides were made on: `prompts`; and of how
        many data sets it is not known, because they are not here as they were: `unknown`."""
        sources = list(made_on(policy))
        here = [source for source in sources if _is_here(source)]
        met = frozenset().union(*map(self._of, here))
        return {"prompts": sum(prompt in met for prompt in self._asked), "unknown": len(sources) - len(here)}

    def _of(self, source: Artifact) -> frozenset[str]:
        mark = f"{source.fingerprint}.{source.part}"
        if mark not in self._known:
            assert isinstance(source.entry, Data)
            rows = data.read(source.entry, source.part, f"data.{source.name}").rows
            prompts = (Prompt(row.prompt) if isinstance(row, Pair) else row for row in rows)
            self._known[mark] = frozenset(prompt.id for prompt in prompts)
        return self._known[mark]


def copied(
    properties: Properties, known: TrainingTexts | None, answers: list[list[Answer]]
) -> dict[str, dict[str, float]]:
    """How much of a policy's answers stands word for word in what it was trained on: the share of words in runs of eight that
    occur there, and the share of answers that do as a whole. Empty where those are not known."""
    if known is None:
        return {}
    shares = np.array([[[known.copied(a.text), known.has(a.text)] for a in row] for row in answers], dtype=float)
    words, whole = shares.mean(axis=1).T
    return {"copied_words": properties.interval(words)._asdict(), "copied_whole": properties.interval(whole)._asdict()}


def _sources(policy: Artifact) -> Iterator[Artifact]:
    """The pairs, of which the chosen answers count, and the responses that a policy's language models were trained on; not
    those that its rewards were, nor what a stage drew and kept for itself."""
    for stage in direct(policy):
        if stage.produces != "language model":
            continue
        for slot in ("data", "responses"):
            yield from stage.inputs.get(slot, ())


def _is_here(source: Artifact) -> bool:
    if not isinstance(source.entry, Data):
        return source.folder is not None and (source.folder / _file_of(source)).exists()
    fact = data.fact(source.entry, offline=True)
    return source.entry.revision is not None or fact.identity == source.payload["facts"]


def _answers_in(source: Artifact) -> Iterator[str]:
    if isinstance(source.entry, Data):
        if source.produces == "preference pairs":
            yield from (pair.chosen for pair in data.read(source.entry, source.part, f"data.{source.name}").rows)
        return
    assert source.folder is not None
    rows = read_lines(source.folder / _file_of(source))
    if source.produces == "preference pairs":
        yield from (row["chosen"] for row in rows)
    else:
        yield from (r["text"] for row in rows for r in row["responses"])


def _file_of(source: Artifact) -> str:
    return PAIRS if source.produces == "preference pairs" else RESPONSES


def apart(
    properties: Properties,
    policy: Artifact,
    rewards: Sequence[Artifact],
    scores: Sequence[Sequence[Array]],
    i: int,
    reference: int,
) -> list[dict[str, Any]]:
    """Of each reward that guides a policy and each that does not: how much more was gained of the first, in standard deviations
    of the reference's answers. `guide` and `gold` are places among the rewards."""
    roles = [role(policy, reward) for reward in rewards]
    deviations = [float(of[reference].std()) for of in scores]
    gains = [of[i].mean(axis=1) - of[reference].mean(axis=1) for of in scores]
    found = []
    for guide, gold in ((g, h) for g in range(len(rewards)) for h in range(len(rewards))):
        if i == reference or roles[guide] != "guides" or roles[gold] == "guides":
            continue
        if deviations[guide] > 0 and deviations[gold] > 0:
            more = divergence_of_gold(
                gains[guide], gains[gold], guide_deviation=deviations[guide], gold_deviation=deviations[gold]
            )
            found.append({"guide": guide, "gold": gold, **properties.interval(more)._asdict()})
    return found


def of_seeds(
    properties: Properties, policies: Sequence[Artifact], scores: Sequence[Sequence[Array]], reference: int
) -> list[dict[str, Any]]:
    """Policies that differ by the seeds of their training alone, taken together: by reward, the mean and the difference to
    the reference with intervals over seeds and prompts. `policies` are places. The reference is in no group, for its
    difference is none, and one policy under several names is one."""
    groups: dict[str, list[int]] = {}
    distinct = {policy.fingerprint: i for i, policy in reversed(list(enumerate(policies)))}
    for mark, i in sorted(distinct.items(), key=lambda item: item[1]):
        if mark != policies[reference].fingerprint:
            groups.setdefault(_but_for_the_seed(policies[i]), []).append(i)
    entry = properties.job.entry
    asked = {"confidence": entry.confidence, "resamples": entry.resamples, "seed": properties.job.seed}
    found = []
    for members in groups.values():
        if len(members) < 2:
            continue
        rewards = []
        for of in scores:
            means = np.stack([of[i].mean(axis=1) for i in members])
            differences = means - of[reference].mean(axis=1)
            rewards.append({
                "reward": over_seeds(means, **asked)._asdict(),
                "difference": over_seeds(differences, **asked)._asdict(),
            })  # fmt: skip
        found.append({"policies": members, "rewards": rewards})
    return found


def _but_for_the_seed(policy: Artifact) -> str:
    """What a policy is, whatever the seeds of its training."""
    spec: dict[str, Any] = {name: value for name, value in policy.fields.items() if name != "seed"}
    for slot in ("from", "previous", "since"):
        for below in policy.inputs.get(slot, ()):
            spec[slot] = _but_for_the_seed(below)
    return canonical([policy.payload["kind"], spec, policy.payload["facts"]])
