"""The samples that are decoded together: who sits in which row, who comes next, who has left.

Row r of every reader and of every tensor that is held is the sample in seat r. Each prompt is prefilled once, longest first
and in small batches of like length; each of its samples takes a row and a copy of its keys and values; rows that have
ended are filled by the last ones.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from itertools import groupby, islice
from typing import Protocol

import numpy as np
import torch
from torch import Tensor

from registry.methods.draws import uniforms
from tasks.reader import Reader
from tasks.slot_cache import Prefill

# Prompts a prefill batch: enough positions to fill the matrix kernels, little padding, and logits
# at no more than this many distinct last positions.
PREFILL = 16


class NotFinite(ValueError):
    """A model gave logits that are no finite numbers; `prompt` is the place of the prompt they were to."""

    def __init__(self, prompt: int, key: str):
        super().__init__(f"prompt {key}: the model gave logits that are not finite")
        self.prompt = prompt


class Companion(Protocol):
    """What reads along with the policy, on readers of its own."""

    @property
    def readers(self) -> list[Reader]: ...

    def seat(self, started: Iterable[Prefill], rows: Sequence[int], prompts: Sequence[int]) -> None:
        """New rows: see `Reader.seat`, for each of the readers."""


@dataclass
class Seat:
    """A sample under way: which one, where its prompt lies in the prefills of the readers, what it has drawn."""

    prompt: int
    number: int
    prefills: tuple[Prefill, ...]
    row: int
    ids: list[int] = field(default_factory=list)


@dataclass
class Batch:
    """See the module."""

    policy: Reader
    companion: Companion | None
    samples: int
    slots: int
    new: int
    """The most tokens of a sample."""
    seats: list[Seat] = field(init=False, default_factory=list)
    held: list[Tensor] = field(init=False, default_factory=list)
    """Tensors [slots, ...] whose rows move with the seats."""

    def __post_init__(self) -> None:
        self._queue = self._arrivals()
        for reader in self.readers:
            reader.start(self.slots, self.new)

    @property
    def readers(self) -> list[Reader]:
        return [self.policy, *(self.companion.readers if self.companion else ())]

    @property
    def device(self) -> torch.device:
        return self.policy.device

    def hold(self, *shape: int, dtype: torch.dtype = torch.long) -> Tensor:
        """A tensor [slots, *shape] of zeros whose rows move with the seats."""
        self.held.append(torch.zeros(self.slots, *shape, dtype=dtype, device=self.device))
        return self.held[-1]

    def admit(self) -> tuple[list[Seat], list[Tensor]]:
        """The samples that take the free rows, and the policy's logits after their prompts."""
        arrivals = list(islice(self._queue, self.slots - len(self.seats)))
        logits = []
        for _, group in groupby(arrivals, key=lambda seat: id(seat.prefills)):
            guests = list(group)
            rows, prompts = [seat.row for seat in guests], [seat.prompt for seat in guests]
            policy, *others = guests[0].prefills
            if self.companion is not None:
                self.companion.seat(others, rows, prompts)
            logits.append(self.policy.seat(policy, rows, prompts))
        for seat in arrivals:
            # The last seat of a prefill to let go of it frees its keys and values.
            seat.prefills = ()
        for held in self.held:
            held[len(self.seats) : len(self.seats) + len(arrivals)] = 0
        self.seats += arrivals
        return arrivals, logits

    def leave(self, holes: Sequence[int]) -> list[Seat]:
        """The samples in the rows `holes` leave; the last rows move there, so that the live rows are the first ones again."""
        left = [self.seats[slot] for slot in holes]
        rows = len(self.seats) - len(holes)
        gone = set(holes)
        targets = [slot for slot in holes if slot < rows]
        sources = [slot for slot in range(rows, len(self.seats)) if slot not in gone]
        for source, target in zip(sources, targets, strict=True):
            self.seats[target] = self.seats[source]
        del self.seats[rows:]
        if targets:
            of, to = (torch.tensor(some, device=self.device) for some in (sources, targets))
            for held in self.held:
                held[to] = held[of]
        for reader in self.readers if left else ():
            reader.close_up(sources, targets, rows)
        return left

    def numbers(self, seats: Sequence[Seat], seed: int, keys: Sequence[str], after: int = 0) -> Tensor:
        """The uniform numbers [seats, new] of samples, or of those that come `after` them."""
        streams = [uniforms(seed, keys[seat.prompt], seat.number + after, self.new) for seat in seats]
        return torch.from_numpy(np.stack(streams)).to(self.device)

    def _arrivals(self) -> Iterator[Seat]:
        """Every sample in the order of admission; a prompt is prefilled when its first one is due."""
        prompts = self.policy.prompts
        order = sorted(range(len(prompts)), key=lambda prompt: -len(prompts[prompt]))
        for start in range(0, len(order), PREFILL):
            chunk = order[start : start + PREFILL]
            started = tuple(reader.prefill(chunk) for reader in self.readers)
            for row, prompt in enumerate(chunk):
                for number in range(self.samples):
                    yield Seat(prompt, number, started, row)
