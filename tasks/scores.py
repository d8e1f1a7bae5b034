"""Scores of answers, each computed once: best-of-N and the evaluation that judges it ask for the same ones."""

from __future__ import annotations

from collections.abc import Sequence

from registry.artifacts import Artifact
from registry.reading import noting
from registry.rewards import scorer
from registry.rows import Prompt
from specs.execution import Execution
from tasks.clock import NOTHING, Clock, Spent
from tasks.job import Log
from tasks.memory import free_memory, peak_memory
from tasks.models import Models


class Scores:
    """Remembers every score by reward, prompt and text. One reward is in memory at a time, a weighted sum with all its parts,
    unless `models` holds them."""

    def __init__(self, execution: Execution, log: Log, models: Models | None = None):
        self._execution, self._log, self._models = execution, log, models
        self._known: dict[tuple[str, str, str], float] = {}
        self._read: dict[tuple[str, str, str], int] = {}
        self._spent: dict[str, tuple[int, Spent]] = {}
        self._memory: dict[str, int] = {}

    def of(self, reward: Artifact, prompts: Sequence[Prompt], answers: Sequence[Sequence[str]]) -> list[list[float]]:
        """`[prompt][answer]` for the answers to each prompt."""
        pairs = [(prompt, text) for prompt, row in zip(prompts, answers, strict=True) for text in row]
        keys = [(reward.fingerprint, prompt.id, text) for prompt, text in pairs]
        new = {key: pair for key, pair in zip(keys, pairs, strict=True) if key not in self._known}
        if new:
            self._log.note(f"scoring {len(new):,} answers by {reward.name}")
            score = self._models.score(reward) if self._models else scorer(reward, batch=self._execution.rows)
            clock = Clock()
            with noting() as noted, peak_memory() as peak:
                values = score([p.messages for p, _ in new.values()], [text for _, text in new.values()])
            many, spent = self._spent.get(reward.fingerprint, (0, NOTHING))
            self._spent[reward.fingerprint] = many + len(new), spent.plus(clock.read())
            self._memory[reward.fingerprint] = max(self._memory.get(reward.fingerprint, 0), peak[0])
            self._known |= dict(zip(new, values, strict=True))
            self._read |= dict(zip(new, noted.of_each(len(new)), strict=True))
            del score
            free_memory()
        found = (self._known[key] for key in keys)
        return [[next(found) for _ in row] for row in answers]

    def read(self, reward: Artifact, prompt: Prompt, text: str) -> int:
        """Positions that the models of a reward read to score a text, which it has scored."""
        return self._read[reward.fingerprint, prompt.id, text]

    def spent(self, reward: Artifact) -> Spent:
        """What an answer took to score, on average; nothing where none was scored."""
        many, spent = self._spent.get(reward.fingerprint, (1, NOTHING))
        return spent.times(1 / many)

    def memory(self, reward: Artifact) -> int:
        """The most bytes in use while it scored; see `tasks.memory.peak_memory`."""
        return self._memory.get(reward.fingerprint, 0)
