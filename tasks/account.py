"""What an evaluation wants to know of how answers were drawn: all candidates, what they cost, how far they are from a reference.

It is kept until the stage is built, source by source, so that a run that was killed draws none of them again.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pydantic import TypeAdapter, ValidationError

from registry.artifacts import Artifact
from tasks.clock import Spent
from tasks.drawing import Answer, Drawing
from tasks.meter import Sums
from tasks.reader import Positions
from tasks.rules import Rule, Source

if TYPE_CHECKING:
    from tasks.guides import Guides

DRAWING = TypeAdapter(Drawing)


@dataclass
class Account:
    """See the module."""

    reference: Artifact
    """The language model that divergences are from."""
    scratch: Path
    """Where drawings are kept."""
    drawings: dict[Source, Drawing] = field(default_factory=dict)

    def recalled(self, sources: Sequence[Source]) -> dict[Source, list[list[Answer]]]:
        """The answers of sources that a run before this one drew; empty unless it drew all of them."""
        try:
            found = {source: DRAWING.validate_json(self._file(source).read_bytes()) for source in sources}
        except (OSError, ValidationError):  # not drawn, or by a version that kept it otherwise
            return {}
        self.drawings |= found
        return {source: drawing.answers for source, drawing in found.items()}

    def note(
        self,
        drawn: Sequence[tuple[Source, list[list[Answer]]]],
        policy: Positions,
        guides: Guides | None,
        events: list[dict[str, Any]],
        spent: Spent,
        memory: int,
    ) -> None:
        """Sources that were drawn in one batch share its time by their tokens."""
        measuring = guides.meter.seconds if guides and guides.meter else 0.0
        tokens = [sum(a.tokens for row in answers for a in row) for _, answers in drawn]
        for (source, answers), own in zip(drawn, tokens, strict=True):
            self.drawings[source] = Drawing(
                answers,
                policy.prefill // len(drawn),
                policy.decode if guides else sum(a.tokens - 1 for row in answers for a in row),
                policy.drawn if guides else sum(a.tokens for row in answers for a in row),
                guides.count if guides else Positions(),
                guides.texts if guides else 0,
                spent.times((1 - measuring / spent.wall) * own / max(sum(tokens), 1)),
                memory,
                _in_order(guides.meter.sums, answers) if guides and guides.meter else None,
                events,
            )
            self.scratch.mkdir(parents=True, exist_ok=True)
            unfinished = self._file(source).with_suffix(".part")
            unfinished.write_bytes(DRAWING.dump_json(self.drawings[source]))
            unfinished.replace(self._file(source))

    def draws_of(self, rule: Rule, samples: int) -> list[list[Answer]]:
        """`[prompt][draw]` that so many samples of a rule take, whoever else drew on from its source."""
        answers = self.drawings[rule.source].answers
        return [row[:1] if rule.temperature == 0 else row[: samples * rule.n] for row in answers]

    def _file(self, source: Source) -> Path:
        return self.scratch / f"drawn-{hashlib.sha256(json.dumps(source).encode()).hexdigest()[:16]}.json"


def _in_order(sums: Mapping[tuple[int, int], Sums], answers: list[list[Answer]]) -> list[list[Sums]]:
    return [[sums[prompt, draw] for draw in range(len(row))] for prompt, row in enumerate(answers)]
