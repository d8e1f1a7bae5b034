"""Guides that change what a policy's next token is drawn from: one interface, candidates to scores.

    s(z) = policy_weight * log pi(z) + sum_g weight_g * score_g(z)

over the policy's k most probable tokens or over all of them; temperature, top-k and top-p are applied to s. Log-probabilities
may be logits: what they differ by is the same for all candidates. A guide either scores every next token in one pass
(`NextTokens`: a second language model, a vocabulary-wide head), reads each candidate behind what is there (`Prefixes`: a
reward model, a scalar head), all candidates as siblings in one row, or goes on from each candidate and looks at what comes
of it (`tasks.rollouts`). With every weight 0 the policy is drawn from.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from itertools import islice
from typing import Any, ClassVar, Protocol

import torch
from torch import Tensor

from registry.methods.draws import inverse_cdf
from registry.methods.guided import combined, most_probable, standardised
from tasks.batch import Batch, Stepping
from tasks.meter import Meter
from tasks.reader import Reader
from tasks.slot_cache import Prefill
from tasks.tokens import Now, Tokens
from tasks.trace import Observer, tell_tokens


class Guide(Protocol):
    """What scores the tokens that may come next in every row."""

    @property
    def readers(self) -> list[Reader]: ...

    def seat(self, started: Sequence[Prefill], rows: Sequence[int], prompts: Sequence[int]) -> None:
        """New rows: see `Reader.seat`, for each of the readers."""

    def read(self, tokens: Tensor) -> None:
        """The tokens [rows] that were drawn."""

    def scores(self, candidates: Tensor | None, now: Now) -> Tensor:
        """Of `candidates` [rows, k], or of the whole vocabulary [rows, vocabulary]."""

    def chosen(self, place: Tensor) -> None:
        """Which of the candidates each row goes on with, [rows]."""


@dataclass
class NextTokens:
    """A guide that gives the scores of every next token in one pass."""

    reader: Reader
    speaks: bool = False
    """Whether its scores are logits, which a person is told as log-probabilities."""
    _parts: list[Tensor] = field(default_factory=list)

    @property
    def readers(self) -> list[Reader]:
        return [self.reader]

    def seat(self, started: Sequence[Prefill], rows: Sequence[int], prompts: Sequence[int]) -> None:
        self._parts.append(self.reader.seat(started[0], rows, prompts))

    def read(self, tokens: Tensor) -> None:
        self._parts = [self.reader.step(tokens)]

    def scores(self, candidates: Tensor | None, now: Now) -> Tensor:
        values = self._parts[0] if len(self._parts) == 1 else torch.cat(self._parts)
        self._parts = []
        return (values if candidates is None else values.gather(1, candidates)).float()

    def chosen(self, place: Tensor) -> None:
        """It reads the token at the next step."""


@dataclass
class Prefixes:
    """A guide that scores what it has read: k candidates are k siblings in each row.

    A candidate that ends the answer is read as `ending`, how the guide's template ends one (the end of a turn and what it
    writes behind that): so a reward model's score of it is its reward of the finished answer. All others are scored as far
    as they go, unfinished.
    """

    reader: Reader
    ending: Sequence[int] = ()

    @property
    def readers(self) -> list[Reader]:
        return [self.reader]

    def seat(self, started: Sequence[Prefill], rows: Sequence[int], prompts: Sequence[int]) -> None:
        self.reader.seat(started[0], rows, prompts)

    def read(self, tokens: Tensor) -> None:
        """It has read it as a candidate."""

    def scores(self, candidates: Tensor | None, now: Now) -> Tensor:
        assert candidates is not None, "a guide that scores prefixes looks at candidates"
        k, device = candidates.shape[1], candidates.device
        is_end = torch.isin(candidates, now.ends)
        read = candidates.masked_fill(is_end, self.ending[0]) if self.ending else candidates
        tail = self.ending[1:]
        most = int(is_end.sum(1).max()) if tail else 0
        if not most:
            seen = torch.eye(k, dtype=torch.bool, device=device)[None]
            return self.reader.look(read, seen, torch.zeros(k, dtype=torch.long, device=device))
        places = is_end.int().topk(most).indices
        tokens, seen, ahead = self._with_tails(read, places)
        found = self.reader.look(tokens, seen, ahead, padding=(len(is_end) * most - int(is_end.sum())) * len(tail))
        finished = found[:, k + len(tail) - 1 :: len(tail)]
        return torch.where(is_end, found[:, :k].scatter(1, places, finished), found[:, :k])

    def chosen(self, place: Tensor) -> None:
        self.reader.keep(place[:, None])

    def _with_tails(self, candidates: Tensor, places: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """The candidates and, behind them, the tail of each candidate at `places` [rows, ends]: tokens, who sees whom, and
        how far ahead each stands."""
        (rows, k), ends, tail = candidates.shape, places.shape[1], len(self.ending) - 1
        device = candidates.device
        of_tails = torch.tensor([*self.ending[1:]] * ends, device=device).expand(rows, -1)
        seen = torch.zeros(rows, k + ends * tail, k + ends * tail, dtype=torch.bool, device=device)
        seen[:, :k, :k] = torch.eye(k, dtype=torch.bool, device=device)
        earlier = torch.ones(tail, tail, dtype=torch.bool, device=device).tril()
        for end in range(ends):
            own = slice(k + end * tail, k + (end + 1) * tail)
            seen[:, own, own] = earlier
            seen[torch.arange(rows, device=device), own, places[:, end]] = True
        ahead = torch.tensor([0] * k + [*range(1, tail + 1)] * ends, device=device)
        return torch.cat([candidates, of_tails], dim=1), seen, ahead


@dataclass(frozen=True)
class Guidance:
    """See the module. `candidates` 0 looks at the whole vocabulary."""

    guides: Sequence[tuple[Guide, float]]
    candidates: int = 0
    policy_weight: float = 1.0
    normalised: bool = False
    """Divide by the sum of the weights."""
    standardised: bool = False
    """Each guide's scores at mean 0 and standard deviation 1 over the candidates."""
    observer: Observer | None = None
    """Hears of every choice."""
    meter: Meter | None = None
    """Measures how far from a reference each token is drawn."""
    branches: ClassVar[int] = 1

    @property
    def readers(self) -> list[Reader]:
        guides = [reader for guide, _ in self.guides for reader in guide.readers]
        return guides + (self.meter.readers if self.meter else [])

    def stepping(self, batch: Batch, rule: dict[str, Any]) -> Stepping:
        return Tokens(batch, self, rule)

    def seat(self, started: Iterable[Prefill], rows: Sequence[int], prompts: Sequence[int]) -> None:
        left = iter(started)
        for guide, _ in self.guides:
            guide.seat(list(islice(left, len(guide.readers))), rows, prompts)
        if self.meter is not None:
            self.meter.seat(list(left), rows, prompts)

    def read(self, tokens: Tensor) -> None:
        for guide, _ in self.guides:
            guide.read(tokens)
        if self.meter is not None:
            self.meter.read(tokens)

    def draw(self, logits: Tensor, u: Tensor, now: Now, temperature: float, top_k: int, top_p: float) -> Tensor:
        """The next token of every row, at its number in `u`; -1 where there is no distribution."""
        candidates = most_probable(logits, self.candidates) if self.candidates else None
        own = logits if candidates is None else logits.gather(1, candidates)
        scored = [(guide.scores(candidates, now), weight) for guide, weight in self.guides]
        if self.standardised:
            scored = [(standardised(scores), weight) for scores, weight in scored]
        whole = combined(own, scored, self.policy_weight, normalised=self.normalised)
        place = inverse_cdf(whole, u, temperature=temperature, top_k=top_k, top_p=top_p)
        if self.observer is not None:
            given = [_told(guide, scores) for (guide, _), (scores, _) in zip(self.guides, scored, strict=True)]
            tell_tokens(self.observer, now.seats, logits, candidates, given, whole, place, temperature)
        if self.meter is not None:
            self.meter.note(now.seats, logits, candidates, whole, place, (temperature, top_k, top_p))
        for guide, _ in self.guides:
            guide.chosen(place.clamp(min=0))
        if candidates is None:
            return place
        return torch.where(place < 0, place, candidates.gather(1, place.clamp(min=0)[:, None])[:, 0])


def _told(guide: Guide, scores: Tensor) -> Tensor:
    return scores.log_softmax(-1) if isinstance(guide, NextTokens) and guide.speaks else scores
