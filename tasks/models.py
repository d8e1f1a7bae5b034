"""Models in memory, each loaded once by whoever holds this: a policy that is asked again and again, or all that guides it."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, Literal, TypeVar

from registry.artifacts import Artifact
from registry.bases import Bases
from registry.four_bits import is_rounded
from registry.language_models import LanguageModel, load_language_model
from registry.prefix_scorers import PrefixHead, load_prefix_scorer
from registry.reward_models import load_sequence_classifier
from registry.rewards import Score, scorer

Loaded = TypeVar("Loaded")


@dataclass
class Models:
    """See the module."""

    rows: int
    """The most texts that a reward reads at a time."""
    bases: Bases | None = None
    """The weights that adapted models share, where several are held at once."""
    _held: dict[tuple[str, ...], Any] = field(default_factory=dict)

    def language_model(self, artifact: Artifact, four_bits: Literal["held", "rounded"] | None = None) -> LanguageModel:
        if four_bits == "rounded" and is_rounded(artifact):
            four_bits = None  # what it is anyway
        return self._once(
            (artifact.fingerprint, "language model", str(four_bits)),
            lambda: load_language_model(artifact, four_bits=four_bits, bases=self.bases),
        )

    def prefix_scorer(self, artifact: Artifact) -> tuple[LanguageModel, PrefixHead]:
        return self._once((artifact.fingerprint, "prefix scorer"), lambda: load_prefix_scorer(artifact, self.bases))

    def reward_model(self, artifact: Artifact) -> tuple[Any, Any, int]:
        """A sequence classifier, its tokenizer, and the index of the class that is the reward (-1: the only output)."""
        key = (artifact.fingerprint, "reward model")
        return self._once(key, lambda: load_sequence_classifier(artifact, self.bases))

    def score(self, artifact: Artifact) -> Score:
        """A reward as a function of prompts and answers."""
        return self._once((artifact.fingerprint, "score"), lambda: scorer(artifact, batch=self.rows, loader=self))

    def _once(self, key: tuple[str, ...], load: Callable[[], Loaded]) -> Loaded:
        if key not in self._held:
            self._held[key] = load()
        found: Loaded = self._held[key]
        return found
