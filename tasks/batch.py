"""The samples that are decoded together: who sits in which row, who comes next, who has left.

Row r of every reader and of every tensor that is held is the sample in seat r. Requests may come at any time and are served
in their order. Each prompt is prefilled once, in small batches; each of its samples takes a row and a copy of its keys and
values; rows that have ended are filled by the last ones.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Collection, Iterable, Sequence
from dataclasses import dataclass, field
from itertools import groupby
from typing import Any, Protocol

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
    """What reads along with the policy, on readers of its own, and says how the batch is decoded."""

    @property
    def branches(self) -> int:
        """How many branches of each sample are under way at once."""

    @property
    def readers(self) -> list[Reader]: ...

    def seat(self, started: Iterable[Prefill], rows: Sequence[int], prompts: Sequence[int]) -> None:
        """New rows: see `Reader.seat`, for each of the readers."""

    def stepping(self, batch: Batch, rule: dict[str, Any]) -> Stepping:
        """`rule` holds temperature, top_k and top_p."""


@dataclass(frozen=True)
class Request:
    """What is asked of one prompt."""

    prompt: int
    """Its place among the prompts of each reader."""
    key: str
    """With the seed, what its random numbers belong to."""
    seed: int
    samples: int
    limit: int
    """The most tokens of a sample."""
    chosen: int
    """How many of the samples will be chosen from all of them: sample j is branch j // chosen of number j % chosen."""


@dataclass(eq=False)
class Seat:
    """A sample under way: which one, where its prompt lies in the prefills of the readers, what it has drawn."""

    request: Request
    number: int
    prefills: tuple[Prefill, ...]
    row: int
    ids: list[int] = field(default_factory=list)
    settled: int = 0
    """How many of its tokens are sure to stay."""
    is_wanted: bool = True
    """Nobody waits any more for one that is not: it leaves at the end of the step."""

    @property
    def prompt(self) -> int:
        return self.request.prompt


@dataclass(frozen=True)
class Sample:
    """One response: its tokens, the end-of-sequence token included if it was reached."""

    ids: tuple[int, ...]
    finished: bool


class Stepping(Protocol):
    """A way to decode a batch."""

    batch: Batch

    def step(self) -> list[Seat]:
        """Every row goes on, new ones among them; the samples that have left."""


@dataclass
class Batch:
    """See the module."""

    policy: Reader
    companion: Companion | None
    slots: int
    new: int
    """The most tokens of any sample."""
    eos_ids: Collection[int]
    """The tokens that end an answer."""
    seats: list[Seat] = field(init=False, default_factory=list)
    waiting: deque[Request] = field(init=False, default_factory=deque)
    held: list[Tensor] = field(init=False, default_factory=list)
    """Tensors [slots, ...] whose rows move with the seats."""
    limits: Tensor = field(init=False)
    """[slots]: the most tokens of each."""
    ends: Tensor = field(init=False)
    """`eos_ids` on the device."""
    _ready: deque[Seat] = field(init=False, default_factory=deque)
    """Those whose prompt has been prefilled."""

    def __post_init__(self) -> None:
        for reader in self.readers:
            reader.start(self.slots, self.new)
        self.limits = self.hold()
        self.ends = torch.tensor(sorted(self.eos_ids), dtype=torch.long, device=self.device)

    @property
    def readers(self) -> list[Reader]:
        return [self.policy, *(self.companion.readers if self.companion else ())]

    @property
    def device(self) -> torch.device:
        return self.policy.device

    @property
    def is_idle(self) -> bool:
        return not (self.seats or self._ready or self.waiting)

    def hold(self, *shape: int, dtype: torch.dtype = torch.long) -> Tensor:
        """A tensor [slots, *shape] of zeros whose rows move with the seats."""
        self.held.append(torch.zeros(self.slots, *shape, dtype=dtype, device=self.device))
        return self.held[-1]

    def admit(self) -> tuple[list[Seat], list[Tensor]]:
        """The samples that take the free rows, and the policy's logits after their prompts."""
        arrivals = self._arrivals(self.slots - len(self.seats))
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
        own = slice(len(self.seats), len(self.seats) + len(arrivals))
        for held in self.held:
            held[own] = 0
        self.limits[own] = torch.tensor([seat.request.limit for seat in arrivals], dtype=torch.long, device=self.device)
        self.seats += arrivals
        return arrivals, logits

    def drop(self, request: Request) -> None:
        """Nobody waits for it any more: its samples leave at the end of the next step."""
        if request in self.waiting:
            self.waiting.remove(request)
        for seat in (*self._ready, *self.seats):
            seat.is_wanted = seat.is_wanted and seat.request is not request

    def is_over(self, seat: Seat) -> bool:
        """Whether the sample has come to its end."""
        return seat.ids[-1] in self.eos_ids or len(seat.ids) == seat.request.limit

    def leave(self, holes: Sequence[int]) -> list[Seat]:
        """The samples in the rows `holes` leave, and those that nobody wants; the last rows move there, so that the live
        rows are the first ones again."""
        gone = set(holes) | {slot for slot, seat in enumerate(self.seats) if not seat.is_wanted}
        holes = sorted(gone)
        left = [self.seats[slot] for slot in holes]
        rows = len(self.seats) - len(holes)
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

    def numbers(self, seats: Sequence[Seat], branch: int = 0) -> Tensor:
        """The uniform numbers [seats, new] of samples, or of a `branch` of each."""
        streams = []
        for seat in seats:
            own, number = divmod(seat.number, seat.request.chosen)
            streams.append(uniforms(seat.request.seed, seat.request.key, number, self.new, own + branch))
        return torch.from_numpy(np.stack(streams)).to(self.device)

    def _arrivals(self, room: int) -> list[Seat]:
        """As many samples as there is room for, of those that are waiting."""
        arrivals: list[Seat] = []
        while len(arrivals) < room and (self._ready or self.waiting):
            if not self._ready:
                self._prefill()
            seat = self._ready.popleft()
            arrivals += [seat] if seat.is_wanted else []
        return arrivals

    def _prefill(self) -> None:
        """The next prompts are read, and their samples are ready."""
        requests = [self.waiting.popleft() for _ in range(min(PREFILL, len(self.waiting)))]
        started = tuple(reader.prefill([request.prompt for request in requests]) for reader in self.readers)
        for row, request in enumerate(requests):
            self._ready += [Seat(request, number, started, row) for number in range(request.samples)]


def answers(
    stepping: Stepping, requests: Sequence[Request], on_progress: Callable[[int, int], None] | None = None
) -> list[list[Sample]]:
    """`[request][sample]` of all requests, those with the longest prompts first; `on_progress` hears (ended, all) samples."""
    batch = stepping.batch
    results: list[dict[int, Sample]] = [{} for _ in requests]
    place = {request: number for number, request in enumerate(requests)}
    batch.waiting.extend(sorted(requests, key=lambda request: -len(batch.policy.prompts[request.prompt])))
    done, total = 0, sum(request.samples for request in requests)
    while not batch.is_idle:
        ended = stepping.step()
        for seat in ended:
            results[place[seat.request]][seat.number] = Sample(tuple(seat.ids), seat.ids[-1] in batch.eos_ids)
        done += len(ended)
        if ended and on_progress is not None:
            on_progress(done, total)
    return [[row[number] for number in range(len(row))] for row in results]
