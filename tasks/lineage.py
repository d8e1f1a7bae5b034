"""What a policy was made of: whether a reward had a part in it, and what making it took."""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Literal, NamedTuple

from registry.artifacts import Artifact
from registry.store import RECORD
from specs.data import Data
from specs.kinds import KINDS
from specs.plan import canonical
from specs.stage import Stage

Role = Literal["guides", "behind the guide", "same labels", "held out"]
"""Of a reward to a policy: the policy was made, or chooses, by it or by a part of it, as it is or weighed, calibrated or averaged
with others; it taught a reward that does (as gold labels teach a reward model); it learnt from what the policy or one of its
guides learnt from, so that it shares their faults; or it had no part, and judges from outside."""
LEARNT = ("reward_model", "autoregressive_reward_model", "prefix_scorer")
"""The stages in which a reward is learnt from others."""
REWARDS = ("reward", "calibrated reward", "autoregressive reward model", "prefix scorer")
LABELS = "preference pairs"
ASKED = ("prompts", "held_out", "test")
"""Slots of what is answered or measured, and not learnt from."""


def role(policy: Artifact, reward: Artifact) -> Role:
    """What part `reward` had in the making of `policy`."""
    made, judge = list(_walk(policy)), list(_walk(reward))
    whole = {_mark(artifact) for artifact, is_direct in judge if is_direct and artifact.produces in REWARDS}
    near = {_mark(artifact) for artifact, is_direct in made if is_direct and artifact.produces in REWARDS}
    if whole & near:
        return "guides"
    learnt = (*REWARDS, LABELS)
    taught = [artifact for artifact, _ in made if artifact.produces in learnt]
    if whole & {_mark(artifact) for artifact in taught}:
        return "behind the guide"
    if any(_overlap(mine, its) for mine in taught for its, _ in judge if its.produces in learnt):
        return "same labels"
    return "held out"


def _mark(artifact: Artifact) -> tuple[str, str | None]:
    return artifact.fingerprint, artifact.part


def _overlap(one: Artifact, other: Artifact) -> bool:
    """Whether they are the same, or rows of which some may be: parts of one split share none, and of two entries that name the
    same rows it is not known."""
    if not (isinstance(one.entry, Data) and isinstance(other.entry, Data)):
        return one.fingerprint == other.fingerprint
    if one.entry == other.entry and one.part != other.part and None not in (one.part, other.part):
        return False
    return _rows(one) == _rows(other)


def _rows(artifact: Artifact) -> tuple[object, ...]:
    """Which rows an entry begins from, whatever it takes of them: the digest of a file, or a hub's revision."""
    entry = artifact.entry
    assert isinstance(entry, Data)
    facts = artifact.payload["facts"]
    return (canonical(facts),) if facts else (entry.source, entry.revision)


def direct(policy: Artifact) -> Iterator[Artifact]:
    """Everything below a policy that is reached without a learnt reward in between."""
    return (artifact for artifact, is_direct in _walk(policy) if is_direct)


def _walk(policy: Artifact) -> Iterator[tuple[Artifact, bool]]:
    """Everything below a policy, and whether it is reached without a learnt reward in between."""
    waiting, seen = [(policy, True)], set()
    while waiting:
        artifact, is_direct = waiting.pop()
        if (_mark(artifact), is_direct) in seen:
            continue
        seen.add((_mark(artifact), is_direct))
        yield artifact, is_direct
        passes = is_direct and artifact.entry.kind_name not in LEARNT
        waiting += [(one, passes) for one in _below(artifact)]


def _below(artifact: Artifact) -> Iterator[Artifact]:
    """What it was made of, without pairs whose prompts alone were asked."""
    return (one for slot, one in _used(artifact) if not (slot in ASKED and one.produces == LABELS))


def _used(artifact: Artifact) -> Iterator[tuple[str, Artifact]]:
    """Its inputs with their slots, of a soup's experts those that have a weight."""
    for slot, some in artifact.inputs.items():
        weights = artifact.fields.get("weights") if slot == "experts" else None
        yield from ((slot, one) for number, one in enumerate(some) if not (weights and weights[number] == 0))


def made_on(policy: Artifact) -> Iterator[Artifact]:
    """The data sets to whose prompts something below a policy was trained, or drew answers; what only measured it is none."""
    return (artifact for artifact in _reached(policy, without="test") if isinstance(artifact.entry, Data))


def _reached(policy: Artifact, without: str = "") -> Iterator[Artifact]:
    """The policy and everything below it, each once, but for what a slot gives."""
    waiting, seen = [policy], set()
    while waiting:
        artifact = waiting.pop()
        if _mark(artifact) not in seen:
            seen.add(_mark(artifact))
            yield artifact
            waiting += [one for slot, one in _used(artifact) if slot != without]


def guides_of(policy: Artifact) -> list[str]:
    """The names of what guides a policy, in the order of their scores."""
    slots = [policy.inputs.get(slot, ()) for slot in ("reward", "scorers", "guides", "policies")]
    return list({guide.fingerprint: guide.name for slot in slots for guide in slot}.values())


class Making(NamedTuple):
    """Seconds that stages took when they were built."""

    seconds: float
    is_all: bool
    """Whether it is known of all: a promoted model brings along what it answers with, and not what taught it."""


def making(policy: Artifact) -> Making:
    """Of all stages below a policy, each counted once, whoever asked for it; of one that was resumed, the last attempt."""
    stages = {artifact.fingerprint: artifact for artifact in _reached(policy) if isinstance(artifact.entry, Stage)}
    spent = [_spent(artifact) for artifact in stages.values()]
    return Making(sum((one.seconds for one in spent), 0.0), all(one.is_all for one in spent))


def _spent(artifact: Artifact) -> Making:
    """By a stage itself. A model that a run goes on `since` has the models below it alone: what else its record names is not
    reached."""
    if artifact.folder is None or not (artifact.folder / RECORD).exists():
        return Making(0.0, False)
    record = json.loads((artifact.folder / RECORD).read_text(encoding="utf-8"))
    here = {one.fingerprint for some in artifact.inputs.values() for one in some}
    lost = [one for one in record["inputs"] if one["fingerprint"] not in here and one["kind"] in (*KINDS, "weighted")]
    return Making(float(record["provenance"]["seconds"]), not lost)
