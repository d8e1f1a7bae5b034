"""How far what guides make of a policy is from a reference, token by token while it is drawn.

Afterwards the distribution that a token was drawn from is gone, for guides that score candidates would have to read them all
again. Answers of a language model alone are measured afterwards (`tasks.divergence`).
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import NamedTuple

import torch
from torch import Tensor

from registry.methods.divergence import k1, k3, sampled_token, token_kl
from registry.methods.draws import decoding_weights
from tasks.batch import Seat
from tasks.reader import Reader
from tasks.slot_cache import Prefill


class Sums(NamedTuple):
    """Of an answer, in nats: see `registry.methods.divergence`."""

    rao_blackwell: float
    k1: float
    k3: float
    reference: float
    """Its log-probability under the reference."""


@dataclass
class Meter:
    """See the module."""

    reader: Reader | None = None
    """The reference, where it is another model than the policy that is guided."""
    sums: dict[tuple[int, int], Sums] = field(default_factory=dict)
    """By prompt and sample."""
    seconds: float = 0.0
    """What measuring took."""
    _parts: list[Tensor] = field(default_factory=list)

    @property
    def readers(self) -> list[Reader]:
        return [] if self.reader is None else [self.reader]

    def seat(self, started: Sequence[Prefill], rows: Sequence[int], prompts: Sequence[int]) -> None:
        if self.reader is not None:
            self._parts.append(self.reader.seat(started[0], rows, prompts))

    def read(self, tokens: Tensor) -> None:
        if self.reader is not None:
            begun = time.monotonic()
            self._parts = [self.reader.step(tokens)]
            self.seconds += time.monotonic() - begun

    def note(
        self,
        seats: Sequence[Seat],
        logits: Tensor,
        candidates: Tensor | None,
        whole: Tensor,
        place: Tensor,
        rule: tuple[float, int, float],
    ) -> None:
        """Every row draws: of the policy's own `logits` [rows, vocabulary], the guided scores `whole` [rows, candidates]
        and the place of the token that was taken [rows]."""
        begun = time.monotonic()
        if self.reader is not None:
            logits, self._parts = torch.cat(self._parts), []
        reference = logits.double().log_softmax(-1)  # as in `tasks.divergence`
        if candidates is None:  # what one model's spare embeddings give has no token
            size = min(reference.shape[1], whole.shape[1])
            reference, whole = reference[:, :size], whole[:, :size]
        else:
            reference = reference.gather(1, candidates)
        weights, taken = decoding_weights(whole, *rule), place.clamp(min=0)
        own, its = sampled_token(weights, taken), reference.gather(1, taken[:, None])[:, 0]
        found = torch.stack([token_kl(weights, reference), k1(own, its), k3(own, its), its], dim=1)
        for seat, values in zip(seats, found.tolist(), strict=True):
            where = seat.prompt, seat.number
            before = self.sums.get(where, Sums(0.0, 0.0, 0.0, 0.0))
            self.sums[where] = Sums(*(a + b for a, b in zip(before, values, strict=True)))
        self.seconds += time.monotonic() - begun
