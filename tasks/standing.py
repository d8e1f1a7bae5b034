"""What a model or a reward stands on, told from its entry alone: no file of it needs to be there yet."""

from __future__ import annotations

from registry.artifacts import Artifact
from specs.models import Model
from specs.rewards import Classifier, Coherence
from specs.training import RewardModel


def root(artifact: Artifact) -> Artifact:
    """The external model or classifier at the bottom of a chain of trained ones."""
    while not isinstance(artifact.entry, Model | Classifier | Coherence):
        artifact = artifact.start
    return artifact


def precision_of(artifact: Artifact) -> str:
    return str(root(artifact).payload["facts"].get("precision", "fp32"))


def is_model(reward: Artifact) -> bool:
    """Whether a model gives the reward."""
    return isinstance(reward.entry, Classifier | Coherence | RewardModel) or bool(
        reward.inputs.keys() & {"from", "experts"}
    )
