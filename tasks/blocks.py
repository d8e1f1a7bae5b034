"""Block-wise controlled decoding: K continuations of M tokens, the best of them kept, and again.

The K branches of a sample lie side by side in one row, so the prompt and what was kept are held and read once. Branch b of
a sample draws with random numbers of its own, token by token: with one branch it is plain sampling, and with blocks as long
as an answer it is best-of-K over the very draws of `best_of_n`.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol

import torch
from torch import Tensor

from registry.methods.draws import inverse_cdf
from tasks.batch import Batch, NotFinite, Seat, Stepping
from tasks.branches import PAD, Branches, grow, read
from tasks.reader import Reader
from tasks.slot_cache import Prefill
from tasks.trace import Observer, tell_branches


class BlockScorer(Protocol):
    """What says which branch is the best."""

    @property
    def readers(self) -> list[Reader]: ...

    def scores(self, seats: Sequence[Seat], branches: Branches) -> Tensor:
        """[rows, k]"""

    def chosen(self, branches: Branches, chosen: Tensor, many: int) -> None:
        """The branch [rows] whose first `many` tokens each row goes on with."""


@dataclass
class PrefixBlocks:
    """Scores a branch by what a prefix scorer makes of its last token; where that is of what was read before it, the reader
    stays one token behind the policy (`Reader.lag`)."""

    reader: Reader
    value: Callable[[Tensor, Tensor], Tensor]
    """`value(given, tokens)`: of the tokens [rows, k] from what the reader gives there."""
    finish: Sequence[int] = ()
    """For a reward model, which is to read every branch as a finished answer: the end of an answer and what its template
    writes behind that."""
    end: int | None = None
    """For a prefix scorer: the token by which its template ends an answer, as which it is to read any end."""

    @property
    def readers(self) -> list[Reader]:
        return [self.reader]

    def scores(self, seats: Sequence[Seat], branches: Branches) -> Tensor:
        tokens = branches.tokens
        if self.end is not None:
            last = branches.lengths[..., None] - 1
            ending = torch.where(branches.ends[..., None], self.end, tokens.gather(2, last))
            tokens = tokens.scatter(2, last, ending)
        fed = tokens
        if self.reader.lag:
            before = [(seat.ids or self.reader.prompts[seat.prompt])[-1] for seat in seats]
            first = torch.tensor(before, device=tokens.device)[:, None, None].expand(-1, tokens.shape[1], 1)
            fed = torch.where(tokens == PAD, PAD, torch.cat([first, tokens[..., :-1]], dim=-1))
        if self.finish:
            more = len(self.finish)
            finish = torch.tensor(self.finish, device=tokens.device).expand(*tokens.shape[:2], -1)
            first_free = (branches.lengths - branches.ends.int())[..., None]  # its own end gives way to the model's
            fed = torch.nn.functional.pad(tokens, (0, more), value=PAD)
            fed = fed.scatter(2, first_free + torch.arange(more, device=tokens.device), finish)
        last = tokens.gather(2, branches.lengths[..., None] - 1)[..., 0]
        values = self.value(read(self.reader, fed), last)
        # Equal texts of a row are worth the same, however their places in it round.
        text = torch.cat([fed, last[..., None]], dim=-1) if self.reader.lag else fed
        first = (text[:, :, None] == text[:, None]).all(-1).int().argmax(-1)
        return values.gather(1, first)

    def chosen(self, branches: Branches, chosen: Tensor, many: int) -> None:
        depth = branches.tokens.shape[-1] + len(self.finish)
        self.reader.keep(chosen[:, None] * depth + torch.arange(many, device=chosen.device))


@dataclass
class TextBlocks:
    """Scores a branch by a reward of the answer so far, read as a finished one."""

    reward: Callable[[Sequence[int], Sequence[Sequence[Sequence[int]]]], Sequence[Sequence[float]]]
    """`reward(prompts, answers)`: of answers [row][branch] as tokens to the prompts of those places."""
    readers: list[Reader] = field(default_factory=list)

    def scores(self, seats: Sequence[Seat], branches: Branches) -> Tensor:
        answers = [
            [[*seat.ids, *(token for token in branch if token != PAD)] for branch in row]
            for seat, row in zip(seats, branches.tokens.tolist(), strict=True)
        ]
        found = self.reward([seat.prompt for seat in seats], answers)
        return torch.tensor(found, dtype=torch.float64, device=branches.tokens.device)

    def chosen(self, branches: Branches, chosen: Tensor, many: int) -> None:
        """It reads whole texts."""


@dataclass(frozen=True)
class Blockwise:
    """Of `branches` continuations by a `block` of tokens the one with the highest weighted sum of scores is kept. Blocks
    that end early and a last short one are scored as they stand."""

    scorers: Sequence[tuple[BlockScorer, float]]
    block: int
    branches: int
    observer: Observer | None = None
    """Hears of every choice."""

    @property
    def readers(self) -> list[Reader]:
        return [reader for scorer, _ in self.scorers for reader in scorer.readers]

    def seat(self, started: Iterable[Prefill], rows: Sequence[int], prompts: Sequence[int]) -> None:
        for reader, one in zip(self.readers, started, strict=True):
            reader.seat(one, rows, prompts)

    def stepping(self, batch: Batch, rule: dict[str, Any]) -> Stepping:
        return _Blocks(batch, self, rule)

    def best(self, seats: Sequence[Seat], branches: Branches) -> Tensor:
        """The branch [rows] of highest score, the first on a tie."""
        whole = sum(weight * scorer.scores(seats, branches).double() for scorer, weight in self.scorers)
        assert isinstance(whole, Tensor)
        for row in (~whole.isfinite()).any(1).nonzero()[:1, 0].tolist():
            raise NotFinite(seats[row].prompt, seats[row].request.key)
        chosen = whole.argmax(1)
        if self.observer is not None:
            tell_branches(self.observer, seats, branches.tokens, whole, chosen)
        return chosen

    def chosen(self, branches: Branches, chosen: Tensor) -> None:
        for scorer, _ in self.scorers:
            scorer.chosen(branches, chosen, branches.tokens.shape[-1])


class _Blocks:
    """A block a step for every row of a batch."""

    def __init__(self, batch: Batch, way: Blockwise, rule: dict[str, Any]) -> None:
        self.batch, self.way, self.rule, self.branches = batch, way, rule, way.branches
        # The token that each row has kept and not read, how many it has kept, and the random numbers of its branches.
        self.tokens, self.kept = batch.hold(), batch.hold()
        self.u = batch.hold(way.branches, batch.new, dtype=torch.float64)

    def step(self) -> list[Seat]:
        """Every row keeps one block, new ones among them; returns the samples that end there."""
        batch = self.batch
        logits = [batch.policy.step(self.tokens[: len(batch.seats)])] if batch.seats else []
        arrivals, first = batch.admit()
        rows = len(batch.seats)
        if not rows:
            return []
        if arrivals:
            streams = [batch.numbers(arrivals, branch) for branch in range(self.branches)]
            self.u[rows - len(arrivals) : rows] = torch.stack(streams, dim=1)
        grown = self._grow(torch.cat([*logits, *first]))
        batch.policy.count.drawn += int(grown.lengths.sum())
        chosen = self.way.best(batch.seats, grown)
        grown.keep(batch.policy, chosen, grown.places.shape[-1])
        self.way.chosen(grown, chosen)
        return batch.leave(self._note(grown.of(chosen)))

    def _grow(self, logits: Tensor) -> Branches:
        rows = len(logits)
        kept = self.kept[:rows]

        def draw(logits: Tensor, branches: Tensor, t: int) -> Tensor:
            at = (kept + t).clamp(max=self.batch.new - 1)[:, None, None].expand(-1, self.branches, 1)
            u = self.u[:rows].gather(2, at)[..., 0].gather(1, branches)
            drawn = inverse_cdf(logits.flatten(0, 1), u.flatten(), **self.rule).view(u.shape)
            for row in (drawn < 0).any(1).nonzero()[:1, 0].tolist():
                raise NotFinite(self.batch.seats[row].prompt, self.batch.seats[row].request.key)
            return drawn

        every = torch.arange(self.branches, device=logits.device).expand(rows, -1)
        first = draw(logits[:, None].expand(-1, self.branches, -1), every, 0)
        limits = (self.batch.limits[:rows] - kept).clamp(max=self.way.block)
        return grow(self.batch.policy, first, limits, draw, self.batch.ends)

    def _note(self, kept: Tensor) -> list[int]:
        """Write the blocks [rows, M] down; the rows whose samples end here."""
        rows = len(kept)
        self.tokens[:rows] = kept[:, -1].clamp(min=0)
        self.kept[:rows] += (kept != PAD).sum(1)
        for seat, tokens in zip(self.batch.seats, kept.tolist(), strict=True):
            seat.ids += [token for token in tokens if token != PAD]
            seat.settled = len(seat.ids)
        return [slot for slot, seat in enumerate(self.batch.seats) if self.batch.is_over(seat)]
