"""Many samples of each prompt from one prefill of that prompt, at full batches all the way.

Prompts are prefilled longest first, in small batches of like length. Each sample then takes a row
of the decoding batch and a copy of its prompt's keys and values; when it ends, the batch closes up
and the next sample takes the row that is free. The random numbers of a sample come from (seed, its
prompt's key, its number) alone: neither the batch nor the order of the prompts changes what is
drawn, but for how the model's arithmetic rounds in batches of other shapes.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator, Sequence
from dataclasses import dataclass, field
from itertools import groupby, islice
from typing import Any

import numpy as np
import torch
from torch import Tensor

from registry.methods.draws import check_rule, inverse_cdf, uniforms
from tasks.guidance import Guidance
from tasks.reader import Positions, Reader, next_token_logits
from tasks.slot_cache import Prefill, check_room, evaluating

# Prompts a prefill batch: enough positions to fill the matrix kernels, little padding, and logits
# at no more than this many distinct last positions.
PREFILL = 16


class NotFinite(ValueError):
    """A model gave logits that are no finite numbers; `prompt` is the place of the prompt they were to."""

    def __init__(self, prompt: int, key: str):
        super().__init__(f"prompt {key}: the model gave logits that are not finite")
        self.prompt = prompt


@dataclass(frozen=True)
class Sample:
    """One response: its tokens, the end-of-sequence token included if it was reached."""

    ids: tuple[int, ...]
    finished: bool


@dataclass(frozen=True)
class _Request:
    policy: Reader
    guidance: Guidance | None
    keys: Sequence[str]
    samples: int
    seed: int
    max_new_tokens: int
    eos_ids: frozenset[int]
    temperature: float
    top_k: int
    top_p: float
    rows: int

    @property
    def readers(self) -> list[Reader]:
        return [self.policy, *(self.guidance.readers if self.guidance else ())]

    @property
    def total(self) -> int:
        return len(self.policy.prompts) * self.samples

    def draw(self, logits: Tensor, u: Tensor) -> Tensor:
        if self.guidance is not None:
            return self.guidance.draw(logits, u, self.eos_ids, self.temperature, self.top_k, self.top_p)
        return inverse_cdf(logits, u, temperature=self.temperature, top_k=self.top_k, top_p=self.top_p)


@dataclass
class _Seat:
    """A sample under way: which one, where its prompt lies in the prefills of the readers, what it has drawn."""

    prompt: int
    number: int
    prefills: tuple[Prefill, ...]
    row: int
    ids: list[int] = field(default_factory=list)


@torch.inference_mode()
def sample(
    model: Any,
    prompts: Sequence[Sequence[int]],
    *,
    keys: Sequence[str],
    samples: int,
    seed: int,
    max_new_tokens: int,
    eos_ids: Collection[int],
    temperature: float = 1.0,
    top_k: int = 0,
    top_p: float = 1.0,
    rows: int = 64,
    guidance: Guidance | None = None,
    on_progress: Callable[[int, int], None] | None = None,
    count: Positions | None = None,
    on_rows: Callable[[Sequence[int]], None] | None = None,
) -> list[list[Sample]]:
    """`result[i][j]` is sample j of prompt i, drawn with the numbers of (seed, keys[i], j).

    At most `rows` samples are decoded at a time; `guidance` changes what a token is drawn from; `on_progress` hears
    (ended, all) samples; `count`, if given, is added to; `on_rows` hears before each forward pass of `model` which
    prompt is in each of its rows.
    """
    device = torch.device(model.get_input_embeddings().weight.device)
    count = Positions() if count is None else count
    policy = Reader(next_token_logits(model), prompts, device, on_rows, count)
    request = _Request(
        policy, guidance, keys, samples, seed, max_new_tokens, frozenset(eos_ids), temperature, top_k, top_p, rows
    )  # fmt: skip
    _check(request, model)
    with evaluating(model):
        return _run(request, on_progress)


def _run(request: _Request, on_progress: Callable[[int, int], None] | None) -> list[list[Sample]]:
    results: list[dict[int, Sample]] = [{} for _ in request.policy.prompts]
    queue = _arrivals(request)
    batch = _Batch(request)
    done = 0
    while done < request.total:
        ended = batch.step(queue)
        for seat in ended:
            results[seat.prompt][seat.number] = Sample(tuple(seat.ids), seat.ids[-1] in request.eos_ids)
        done += len(ended)
        if ended and on_progress is not None:
            on_progress(done, request.total)
    return [[row[number] for number in range(request.samples)] for row in results]


def _arrivals(request: _Request) -> Iterator[_Seat]:
    """Every sample in the order of admission; a prompt is prefilled when its first one is due."""
    prompts = request.policy.prompts
    order = sorted(range(len(prompts)), key=lambda prompt: -len(prompts[prompt]))
    for start in range(0, len(order), PREFILL):
        chunk = order[start : start + PREFILL]
        started = tuple(reader.prefill(chunk) for reader in request.readers)
        for row, prompt in enumerate(chunk):
            for number in range(request.samples):
                yield _Seat(prompt, number, started, row)


class _Batch:
    """The running samples: row r of each tensor, of each reader and of `seats` is one of them."""

    def __init__(self, request: _Request) -> None:
        self.request = request
        self.slots = min(request.rows, request.total)
        for reader in request.readers:
            reader.start(self.slots, request.max_new_tokens)
        device = request.policy.device
        self.seats: list[_Seat] = []
        # The token that each row has drawn and not read, how many it has drawn, and its random numbers.
        self.tokens = torch.zeros(self.slots, dtype=torch.long, device=device)
        self.drawn = torch.zeros_like(self.tokens)
        self.u = torch.zeros((self.slots, request.max_new_tokens), dtype=torch.float64, device=device)

    def step(self, queue: Iterator[_Seat]) -> list[_Seat]:
        """Every row draws one token, new ones among them; returns the samples that end there."""
        logits = self._read()
        if arrivals := list(islice(queue, self.slots - len(self.seats))):
            logits = [*logits, *self._admit(arrivals)]
        rows = len(self.seats)
        drawn = self.drawn[:rows]
        u = self.u[:rows].gather(1, drawn[:, None])[:, 0]
        self.tokens[:rows] = self.request.draw(logits[0] if len(logits) == 1 else torch.cat(logits), u)
        drawn += 1
        return self._note(self.tokens[:rows])

    def _read(self) -> list[Tensor]:
        """The policy's logits after each row's last token."""
        if not self.seats:
            return []
        tokens = self.tokens[: len(self.seats)]
        if self.request.guidance is not None:
            self.request.guidance.read(tokens)
        return [self.request.policy.step(tokens)]

    def _admit(self, seats: list[_Seat]) -> Iterator[Tensor]:
        """Give new samples the next rows; yields the policy's logits after their prompts."""
        for _, group in groupby(seats, key=lambda seat: id(seat.prefills)):
            guests = list(group)
            rows, prompts = [seat.row for seat in guests], [seat.prompt for seat in guests]
            policy, *guides = guests[0].prefills
            to = slice(len(self.seats), len(self.seats) + len(guests))
            self.u[to] = self._numbers(guests)
            self.drawn[to] = 0
            self.seats += guests
            if self.request.guidance is not None:
                self.request.guidance.seat(guides, rows, prompts)
            yield self.request.policy.seat(policy, rows, prompts)
            for seat in guests:
                # The last seat of a prefill to let go of it frees its keys and values.
                seat.prefills = ()

    def _close_up(self, holes: list[int]) -> None:
        """Move the last rows into the holes, so that the live rows are the first ones again."""
        rows = len(self.seats) - len(holes)
        gone = set(holes)
        targets = [slot for slot in holes if slot < rows]
        sources = [slot for slot in range(rows, len(self.seats)) if slot not in gone]
        for source, target in zip(sources, targets, strict=True):
            self.seats[target] = self.seats[source]
        del self.seats[rows:]
        if targets:
            of, to = (torch.tensor(some, device=self.tokens.device) for some in (sources, targets))
            for held in (self.tokens, self.drawn, self.u):
                held[to] = held[of]
        for reader in self.request.readers:
            reader.close_up(sources, targets, rows)

    def _numbers(self, seats: list[_Seat]) -> Tensor:
        request = self.request
        streams = [
            uniforms(request.seed, request.keys[seat.prompt], seat.number, request.max_new_tokens) for seat in seats
        ]
        return torch.from_numpy(np.stack(streams)).to(self.u.device)

    def _note(self, tokens: Tensor) -> list[_Seat]:
        """Write the tokens down; the samples that end here leave the batch."""
        holes: list[int] = []
        # The one point of a step where the host waits for the device.
        for slot, (seat, token) in enumerate(zip(self.seats, tokens.tolist(), strict=True)):
            if token < 0:
                raise NotFinite(seat.prompt, self.request.keys[seat.prompt])
            seat.ids.append(token)
            if token in self.request.eos_ids or len(seat.ids) == self.request.max_new_tokens:
                holes.append(slot)
        ended = [self.seats[slot] for slot in holes]
        if holes:
            self._close_up(holes)
        return ended


def _check(request: _Request, model: Any) -> None:
    """Refuse what cannot be sampled, in words for the person who asked for it."""
    check_rule(request.temperature, request.top_k, request.top_p)
    for name in ("samples", "max_new_tokens", "rows"):
        if getattr(request, name) < 1:
            raise ValueError(f"{name} is {getattr(request, name)}; it must be at least 1")
    if request.temperature == 0 and request.samples != 1:
        raise ValueError(
            f"samples is {request.samples} at temperature 0: greedy decoding has one outcome; "
            "ask for 1 sample or raise the temperature"
        )
    prompts = request.policy.prompts
    if len(request.keys) != len(prompts):
        raise ValueError(f"{len(prompts)} prompts came with {len(request.keys)} keys")
    check_room(model, request.keys, prompts, request.max_new_tokens)
