"""What a policy was made of: whether a reward had a part in it, and what making it took."""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Literal

from registry.artifacts import Artifact
from registry.store import RECORD
from specs.stage import Stage

Role = Literal["guides", "behind the guide", "held out"]
"""Of a reward to a policy: the policy was made, or chooses, by it, as it is or weighed, calibrated or averaged with others; it
taught a reward that does (as gold labels teach a reward model); or it had no part, and judges from outside."""
LEARNT = ("reward_model", "autoregressive_reward_model", "prefix_scorer")
"""The stages in which a reward is learnt from others."""


def role(policy: Artifact, reward: Artifact) -> Role:
    """What part `reward` had in the making of `policy`."""
    roles = {is_direct for artifact, is_direct in _walk(policy) if artifact.fingerprint == reward.fingerprint}
    if not roles:
        return "held out"
    return "guides" if True in roles else "behind the guide"


def direct(policy: Artifact) -> Iterator[Artifact]:
    """Everything below a policy that is reached without a learnt reward in between."""
    return (artifact for artifact, is_direct in _walk(policy) if is_direct)


def _walk(policy: Artifact) -> Iterator[tuple[Artifact, bool]]:
    """Everything below a policy, and whether it is reached without a learnt reward in between."""
    waiting, seen = [(policy, True)], set()
    while waiting:
        artifact, is_direct = waiting.pop()
        if (artifact.fingerprint, is_direct) in seen:
            continue
        seen.add((artifact.fingerprint, is_direct))
        yield artifact, is_direct
        passes = is_direct and artifact.entry.kind_name not in LEARNT
        waiting += [(one, passes) for some in artifact.inputs.values() for one in some]


def guides_of(policy: Artifact) -> list[str]:
    """The names of what guides a policy, in the order of their scores."""
    slots = [policy.inputs.get(slot, ()) for slot in ("reward", "scorers", "guides", "policies")]
    return list({guide.fingerprint: guide.name for slot in slots for guide in slot}.values())


def making(policy: Artifact) -> float:
    """Seconds that all stages below a policy took when they were built, each counted once, whoever asked for it."""
    stages = {artifact.fingerprint: artifact for artifact, _ in _walk(policy) if isinstance(artifact.entry, Stage)}
    return sum(_seconds(artifact) for artifact in stages.values())


def _seconds(artifact: Artifact) -> float:
    if artifact.folder is None or not (artifact.folder / RECORD).exists():
        return 0.0
    record = json.loads((artifact.folder / RECORD).read_text(encoding="utf-8"))
    return float(record["provenance"]["seconds"])
