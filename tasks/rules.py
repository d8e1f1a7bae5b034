"""A policy taken apart: the language model, what is drawn from it, what chooses among draws."""

from __future__ import annotations

from dataclasses import dataclass

from registry.artifacts import Artifact
from specs.decoding import (
    DecodeARGS,
    DecodeBestOfN,
    DecodeCARDS,
    DecodeControlled,
    DecodeGenARM,
    DecodeGreedy,
    DecodeMOD,
    DecodeSample,
    DecodeTransferQ,
    DecodeWorstOfN,
)
from specs.soup import Soup

Source = tuple[str, float, int, float]


@dataclass(frozen=True)
class Rule:
    """A policy taken apart."""

    model: Artifact
    temperature: float = 1.0
    top_k: int = 0
    top_p: float = 1.0
    n: int = 1
    reward: Artifact | None = None
    sign: int = 1
    """-1 where the reward's lowest is chosen."""
    guided: Artifact | None = None
    """The policy itself, where guides change what it draws from."""

    @property
    def is_model(self) -> bool:
        """Whether the policy is its language model as it is: at temperature 1 from the whole vocabulary."""
        return self == Rule(self.model)

    @property
    def source(self) -> Source:
        """What decides the draws: rules with the same source share them."""
        return ((self.guided or self.model).fingerprint, self.temperature, self.top_k, self.top_p)

    @property
    def batch(self) -> Source:
        """What can be drawn at once: one source, or soups of the same experts."""
        if not self.is_mixed:
            return self.source
        experts = "+".join(expert.fingerprint for expert in self.model.inputs["experts"])
        return (f"soup of {experts}", self.temperature, self.top_k, self.top_p)

    @property
    def is_mixed(self) -> bool:
        """Whether the model is a sum of updates, which each row of a batch may weigh otherwise."""
        return self.guided is None and isinstance(self.model.entry, Soup) and self.model.entry.rule == "delta"


def rule_of(policy: Artifact) -> Rule:
    entry = policy.entry
    if isinstance(entry, DecodeGreedy):
        return Rule(policy.one("from"), temperature=0.0)
    if isinstance(entry, DecodeSample):
        return Rule(policy.one("from"), entry.temperature, entry.top_k, entry.top_p)
    if isinstance(entry, DecodeBestOfN | DecodeWorstOfN):
        sign = 1 if isinstance(entry, DecodeBestOfN) else -1
        reward = policy.one("reward")
        return Rule(policy.one("from"), entry.temperature, entry.top_k, entry.top_p, entry.n, reward, sign)
    if isinstance(entry, DecodeARGS | DecodeTransferQ):
        return Rule(policy.one("from"), entry.temperature, guided=policy)
    if isinstance(entry, DecodeControlled | DecodeGenARM | DecodeMOD | DecodeCARDS):
        return Rule(policy.one("from"), entry.temperature, entry.top_k, entry.top_p, guided=policy)
    return Rule(policy)
