"""Transfer-Q*: a candidate is worth the reward of what an aligned model makes of it (Chakraborty et al., arXiv 2405.20495).

The baseline goes on greedily from every candidate, k branches side by side in one row of its cache, and a scorer reads what
came of them. Of each branch only the candidate that was chosen is kept.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

from torch import Tensor

from tasks.blocks import BlockScorer
from tasks.branches import Branches, grow
from tasks.reader import Reader
from tasks.slot_cache import Prefill
from tasks.tokens import Now


@dataclass
class Rollouts:
    """A guide: see the module."""

    baseline: Reader
    scorer: BlockScorer
    look_ahead: int
    """The most tokens that the baseline adds to a candidate; an answer's own limit may leave fewer."""
    _grown: Branches | None = field(default=None, init=False)

    @property
    def readers(self) -> list[Reader]:
        return [self.baseline, *self.scorer.readers]

    def seat(self, started: Sequence[Prefill], rows: Sequence[int], prompts: Sequence[int]) -> None:
        for reader, one in zip(self.readers, started, strict=True):
            reader.seat(one, rows, prompts)

    def read(self, tokens: Tensor) -> None:
        """It has read it as a candidate."""

    def scores(self, candidates: Tensor | None, now: Now) -> Tensor:
        assert candidates is not None, "rollouts begin with candidates"
        limits = now.left.clamp(max=1 + self.look_ahead)
        self._grown = grow(self.baseline, candidates, limits, lambda logits, branches, t: logits.argmax(-1), now.ends)
        return self.scorer.scores(now.seats, self._grown).float()

    def chosen(self, place: Tensor) -> None:
        assert self._grown is not None
        self._grown.keep(self.baseline, place, 1)
        self.scorer.chosen(self._grown, place, 1)
        self._grown = None
