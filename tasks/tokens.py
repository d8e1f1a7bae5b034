"""A token a step for every row of a batch, drawn from what the policy says or from what guides make of it."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple, Protocol

import torch
from torch import Tensor

from registry.methods.draws import inverse_cdf
from tasks.batch import Batch, NotFinite, Seat


class Now(NamedTuple):
    """Where the rows stand."""

    seats: Sequence[Seat]
    left: Tensor
    """[rows]: how many more tokens each may have."""
    ends: Tensor
    """The tokens that end an answer."""


class Drawing(Protocol):
    """What changes what a token is drawn from."""

    def read(self, tokens: Tensor) -> None:
        """The tokens [rows] that were drawn."""

    def draw(self, logits: Tensor, u: Tensor, now: Now, temperature: float, top_k: int, top_p: float) -> Tensor:
        """The next token of every row, at its number in `u`; -1 where there is no distribution."""


class Tokens:
    """One token a step for every row of a batch."""

    def __init__(self, batch: Batch, guidance: Drawing | None, rule: dict[str, Any]) -> None:
        """`rule` holds temperature, top_k and top_p."""
        self.batch, self.guidance, self.rule = batch, guidance, rule
        # The token that each row has drawn and not read, how many it has drawn, and its random numbers.
        self.tokens, self.drawn = batch.hold(), batch.hold()
        self.u = batch.hold(batch.new, dtype=torch.float64)

    def step(self) -> list[Seat]:
        """Every row draws one token, new ones among them; returns the samples that end there."""
        batch = self.batch
        logits = self._read()
        arrivals, first = batch.admit()
        logits += first
        rows = len(batch.seats)
        if not rows:
            return []
        if arrivals:
            self.u[rows - len(arrivals) : rows] = batch.numbers(arrivals)
        drawn = self.drawn[:rows]
        u = self.u[:rows].gather(1, drawn[:, None])[:, 0]
        self.tokens[:rows] = self._draw(logits[0] if len(logits) == 1 else torch.cat(logits), u, drawn)
        drawn += 1
        batch.policy.count.drawn += rows
        return batch.leave(self._note())

    def _draw(self, logits: Tensor, u: Tensor, drawn: Tensor) -> Tensor:
        if self.guidance is None:
            return inverse_cdf(logits, u, **self.rule)
        now = Now(self.batch.seats, self.batch.limits[: len(drawn)] - drawn, self.batch.ends)
        return self.guidance.draw(logits, u, now, **self.rule)

    def _read(self) -> list[Tensor]:
        """The policy's logits after each row's last token."""
        if not self.batch.seats:
            return []
        tokens = self.tokens[: len(self.batch.seats)]
        if self.guidance is not None:
            self.guidance.read(tokens)
        return [self.batch.policy.step(tokens)]

    def _note(self) -> list[int]:
        """Write the tokens down; the rows whose samples end here."""
        seats = self.batch.seats
        # The one point of a step where the host waits for the device.
        for seat, token in zip(seats, self.tokens[: len(seats)].tolist(), strict=True):
            if token < 0:
                raise NotFinite(seat.prompt, seat.request.key)
            seat.ids.append(token)
            seat.settled += 1
        return [slot for slot, seat in enumerate(seats) if self.batch.is_over(seat)]
