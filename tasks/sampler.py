"""Many samples of each prompt from one prefill of that prompt, at full batches all the way.

Prompts are prefilled longest first, in small batches of like length. Each sample then takes a row
of the decoding batch (a slot) and a copy of its prompt's keys and values; when it ends, the next
sample takes the row over, and when none is left the batch closes up. The random numbers of a
sample come from (seed, its prompt's key, its number) alone: neither the batch nor the order of the
prompts changes what is drawn, but for how the model's arithmetic rounds in batches of other shapes.
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
from tasks.slot_cache import Prefill, SlotCache, check_room, evaluating, prefill

# Prompts a prefill batch: enough positions to fill the matrix kernels, little padding, and logits
# at no more than this many distinct last positions.
PREFILL = 16
# New tokens the cache has room for at first; it doubles when samples turn out longer.
FIRST_ROOM = 128


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


@dataclass
class Positions:
    """Positions pushed through the model: prompt tokens, padding beside them, decoded tokens."""

    prefill: int = 0
    padding: int = 0
    decode: int = 0


@dataclass(frozen=True)
class _Request:
    model: Any
    prompts: Sequence[Sequence[int]]
    keys: Sequence[str]
    samples: int
    seed: int
    max_new_tokens: int
    eos_ids: frozenset[int]
    temperature: float
    top_k: int
    top_p: float
    rows: int
    count: Positions
    on_rows: Callable[[Sequence[int]], None] | None

    @property
    def device(self) -> torch.device:
        return torch.device(self.model.get_input_embeddings().weight.device)

    def draw(self, logits: Tensor, u: Tensor) -> Tensor:
        return inverse_cdf(logits, u, temperature=self.temperature, top_k=self.top_k, top_p=self.top_p)


@dataclass
class _Seat:
    """A sample under way: which one, where its prompt's prefill lies, what it has drawn."""

    prompt: int
    number: int
    length: int
    prefill: Prefill | None
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
    on_progress: Callable[[int, int], None] | None = None,
    count: Positions | None = None,
    on_rows: Callable[[Sequence[int]], None] | None = None,
) -> list[list[Sample]]:
    """`result[i][j]` is sample j of prompt i, drawn with the numbers of (seed, keys[i], j).

    At most `rows` samples are decoded at a time; `on_progress` hears (ended, all) samples;
    `count`, if given, is added to; `on_rows` hears before each forward pass which prompt is in each
    of its rows.
    """
    request = _Request(
        model, prompts, keys, samples, seed, max_new_tokens, frozenset(eos_ids),
        temperature, top_k, top_p, rows, Positions() if count is None else count, on_rows,
    )  # fmt: skip
    _check(request)
    with evaluating(model):
        return _run(request, on_progress)


def _run(request: _Request, on_progress: Callable[[int, int], None] | None) -> list[list[Sample]]:
    results: list[dict[int, Sample]] = [{} for _ in request.prompts]
    queue = _arrivals(request)
    batch = _Batch(request)
    done, total = 0, len(request.prompts) * request.samples
    holes = list(range(batch.slots))
    ended: list[_Seat] = []
    while True:
        while holes and (seats := list(islice(queue, len(holes)))):
            slots, holes = holes[: len(seats)], holes[len(seats) :]
            holes = batch.admit(slots, seats, ended) + holes
        if ended:
            for seat in ended:
                finished = seat.ids[-1] in request.eos_ids
                results[seat.prompt][seat.number] = Sample(tuple(seat.ids), finished)
            done += len(ended)
            ended.clear()
            if on_progress is not None:
                on_progress(done, total)
        if done == total:
            return [[row[number] for number in range(request.samples)] for row in results]
        if holes:
            batch.close_up(holes)
        holes = batch.step(ended)


def _arrivals(request: _Request) -> Iterator[_Seat]:
    """Every sample in the order of admission; a prompt is prefilled when its first one is due."""
    prompts = request.prompts
    order = sorted(range(len(prompts)), key=lambda prompt: -len(prompts[prompt]))
    for start in range(0, len(order), PREFILL):
        chunk = order[start : start + PREFILL]
        if request.on_rows is not None:
            request.on_rows(chunk)
        started = prefill(request.model, [prompts[prompt] for prompt in chunk])
        real = sum(len(prompts[prompt]) for prompt in chunk)
        request.count.prefill += real
        request.count.padding += len(chunk) * len(prompts[chunk[0]]) - real
        for row, prompt in enumerate(chunk):
            for number in range(request.samples):
                yield _Seat(prompt, number, len(prompts[prompt]), started, row)


class _Batch:
    """The running samples: row r of each tensor, of the cache and of `seats` is one of them."""

    def __init__(self, request: _Request) -> None:
        self.request = request
        self.slots = min(request.rows, len(request.prompts) * request.samples)
        longest = max((len(prompt) for prompt in request.prompts), default=0)
        device = request.device
        self.cache = SlotCache(
            self.slots,
            room=longest + min(request.max_new_tokens, FIRST_ROOM),
            most=longest + request.max_new_tokens,
            device=device,
        )
        self.seats: list[_Seat | None] = [None] * self.slots
        # The token to feed, the position it is written at, the number of tokens drawn.
        self.tokens = torch.zeros(self.slots, dtype=torch.long, device=device)
        self.lengths = torch.zeros_like(self.tokens)
        self.drawn = torch.zeros_like(self.tokens)
        shape = (self.slots, request.max_new_tokens)
        self.u = torch.zeros(shape, dtype=torch.float64, device=device)

    def admit(self, slots: list[int], seats: list[_Seat], ended: list[_Seat]) -> list[int]:
        """Seat new samples and draw their first tokens; returns the slots free again at once."""
        at = 0
        free: list[int] = []
        for started, group in groupby(seats, key=lambda seat: seat.prefill):
            assert started is not None
            guests = list(group)
            places = slots[at : at + len(guests)]
            at += len(guests)
            rows = [seat.row for seat in guests]
            self.cache.fill(places, started.cache, rows)
            to = torch.tensor(places, device=self.tokens.device)
            self.u[to] = self._numbers(guests)
            self.lengths[to] = torch.tensor([seat.length for seat in guests]).to(to)
            self.drawn[to] = 1
            first = self.request.draw(started.logits[rows], self.u[to, 0])
            self.tokens[to] = first
            for place, seat in zip(places, guests, strict=True):
                # The last seat of a prefill to let go of it frees its keys and values.
                seat.prefill = None
                self.seats[place] = seat
            free += self._note(places, first, ended)
        return free

    def step(self, ended: list[_Seat]) -> list[int]:
        """Draw one token for every row; returns the slots whose samples have ended."""
        rows = self.cache.rows
        tokens, lengths = self.tokens[:rows], self.lengths[:rows]
        seats = [seat for seat in self.seats[:rows] if seat]
        longest = max(seat.length + len(seat.ids) - 1 for seat in seats)
        mask = self.cache.step(lengths, longest)
        if self.request.on_rows is not None:
            self.request.on_rows([seat.prompt for seat in seats])
        logits = self.request.model(
            input_ids=tokens[:, None],
            attention_mask=mask,
            position_ids=lengths[:, None],
            past_key_values=self.cache,
            use_cache=True,
        ).logits[:, -1]
        self.request.count.decode += rows
        drawn = self.drawn[:rows]
        tokens.copy_(self.request.draw(logits, self.u[:rows].gather(1, drawn[:, None])[:, 0]))
        lengths += 1
        drawn += 1
        return self._note(range(rows), tokens, ended)

    def close_up(self, holes: list[int]) -> None:
        """Move the last rows into the holes, so that the live rows are the first ones again."""
        rows = self.cache.rows - len(holes)
        gone = set(holes)
        targets = [slot for slot in holes if slot < rows]
        sources = [slot for slot in range(rows, self.cache.rows) if slot not in gone]
        for source, target in zip(sources, targets, strict=True):
            self.seats[target] = self.seats[source]
        if targets:
            of = torch.tensor(sources, device=self.tokens.device)
            to = torch.tensor(targets, device=self.tokens.device)
            for held in (self.tokens, self.lengths, self.drawn, self.u):
                held[to] = held[of]
            self.cache.move(of, to)
        self.cache.rows = rows

    def _numbers(self, seats: list[_Seat]) -> Tensor:
        request = self.request
        streams = [
            uniforms(request.seed, request.keys[seat.prompt], seat.number, request.max_new_tokens) for seat in seats
        ]
        return torch.from_numpy(np.stack(streams)).to(self.u.device)

    def _note(self, slots: Sequence[int], tokens: Tensor, ended: list[_Seat]) -> list[int]:
        """Write the tokens down; the samples that end here leave their seats."""
        free: list[int] = []
        # The one point of a step where the host waits for the device.
        for slot, token in zip(slots, tokens.tolist(), strict=True):
            seat = self.seats[slot]
            assert seat is not None
            if token < 0:
                raise NotFinite(seat.prompt, self.request.keys[seat.prompt])
            seat.ids.append(token)
            if token in self.request.eos_ids or len(seat.ids) == self.request.max_new_tokens:
                ended.append(seat)
                free.append(slot)
                self.seats[slot] = None
        return free


def _check(request: _Request) -> None:
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
    if len(request.keys) != len(request.prompts):
        raise ValueError(f"{len(request.prompts)} prompts came with {len(request.keys)} keys")
    check_room(request.model, request.keys, request.prompts, request.max_new_tokens)
