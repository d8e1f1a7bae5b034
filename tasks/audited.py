"""Audits of an evaluation: what a person would want to look into, each a number with an interval and no verdict."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from pathlib import Path
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
from specs.preference_training import DPO
from specs.stage import Stage
from tasks.drawing import Answer
from tasks.inputs import PAIRS, RESPONSES, ROUND, SAMPLES, read_lines
from tasks.lineage import direct, made_on, role
from tasks.properties import Properties

Array = NDArray[np.float64]

TAKEN = ("candidate", "chosen", "kept")
"""What stages that draw for themselves call the samples that they learn to say."""


class Learnt:
    """What policies were trained on; of policies that were trained on the same it is read once."""

    def __init__(self) -> None:
        self._known: dict[frozenset[str], TrainingTexts] = {}

    def by(self, policy: Artifact) -> TrainingTexts | None:
        """None of a policy that was trained on no answers, or on some that are not here: `rl` and `bond` keep none of what they
        draw, and a promoted model does not bring them."""
        sources = dict(_sources(policy))
        if not sources or not all(sources.values()):
            return None
        mark = frozenset(sources)
        if mark not in self._known:
            self._known[mark] = TrainingTexts(text for texts in sources.values() if texts for text in texts())
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
    return {"copied_words": properties.rate(words)._asdict(), "copied_whole": properties.rate(whole)._asdict()}


Texts = Callable[[], Iterator[str]]


def _sources(policy: Artifact) -> Iterator[tuple[str, Texts | None]]:
    """What the policy's language models were trained on, by a mark of each: the chosen of pairs, the responses, and of what a
    stage drew for itself what it took; None where that is not here. What its rewards were trained on is none of it."""
    for stage in direct(policy):
        given = [one for slot in ("data", "responses") for one in stage.inputs.get(slot, ())]
        if stage.produces != "language model" or not isinstance(stage.entry, Stage) or _gave_up(stage):
            continue
        own = stage.folder / SAMPLES if stage.folder else None
        if own is not None and own.exists():
            yield stage.fingerprint, partial(_taken, own)
        elif stage.entry.kind_name in ("rl", "bond", "raft", "rrhf") or (isinstance(stage.entry, DPO) and not given):
            yield stage.fingerprint, None
        else:
            yield from ((f"{g.fingerprint}.{g.part}", partial(_answers_in, g) if _is_here(g) else None) for g in given)


def _taken(samples: Path) -> Iterator[str]:
    return (r["text"] for row in read_lines(samples) for r in row["responses"] if r["use"] in TAKEN)


def _gave_up(stage: Artifact) -> bool:
    """Whether it is a round of RAFT that trained no more."""
    path = stage.folder / ROUND if stage.folder else None
    return path is not None and path.exists() and bool(json.loads(path.read_bytes()).get("stopped"))


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
    told = [float(np.ptp(of[reference])) > 0 for of in scores]
    gains = [of[i].mean(axis=1) - of[reference].mean(axis=1) for of in scores]
    found = []
    for guide, gold in ((g, h) for g in range(len(rewards)) for h in range(len(rewards))):
        if i == reference or roles[guide] != "guides" or roles[gold] == "guides":
            continue
        if told[guide] and told[gold]:
            guided, held = scores[guide][reference], scores[gold][reference]
            more = divergence_of_gold(gains[guide], gains[gold], guide_reference=guided, gold_reference=held)
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
    confidence = properties.job.entry.confidence
    found = []
    for members in groups.values():
        if len(members) < 2:
            continue
        rewards = []
        for of in scores:
            means = np.stack([of[i].mean(axis=1) for i in members])
            differences = means - of[reference].mean(axis=1)
            rewards.append({
                "reward": over_seeds(means, confidence=confidence)._asdict(),
                "difference": over_seeds(differences, confidence=confidence)._asdict(),
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
