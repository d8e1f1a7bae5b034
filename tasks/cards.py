"""CARDS: segments of an answer sampled until the reward model accepts them, on caches that go back instead of starting anew.

Every row draws a token a step, which policy and judge read. Where a segment is rejected, the row's length goes back in both
to where the segment began, whose logits were kept, and nothing is read again. Tokens are drawn with the numbers of (seed,
prompt, sample) one after the other, rejected ones too; so a sample of which nothing is rejected is the policy's own.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from itertools import count as from_number
from typing import Any, ClassVar

import torch
from torch import Tensor

from registry.methods.cards import acceptance, entropy, threshold
from registry.methods.draws import inverse_cdf, uniforms
from tasks.batch import Batch, NotFinite, Seat, Stepping
from tasks.reader import Reader
from tasks.slot_cache import Prefill
from tasks.trace import Observer, tell_segment


@dataclass(frozen=True)
class Segments:
    """When a segment ends and when it is accepted."""

    target: float
    """The reward at which every answer is accepted."""
    alpha: float = 0.5
    """How far between the prompt's reward and the target the threshold begins."""
    beta: float = 0.7
    """How far below the threshold a reward may be: at beta below it, one in e is accepted."""
    entropy: float = 3.0
    """A segment ends before a token of which the model is this uncertain, in nats,"""
    shortest: int = 4
    """but has so many tokens"""
    longest: int = 64
    """and no more than these."""
    tries: int = 20
    """So many are drawn at most; then the best of them is accepted."""


@dataclass
class Judge:
    """The reward model, which reads along."""

    reader: Reader
    segments: Segments
    ending: Sequence[int] = ()
    """How its template ends an answer: the end of the turn and what it writes behind that, after which a finished one is
    scored."""
    observer: Observer | None = None
    """Hears of every segment."""
    prompts: list[Tensor] = field(default_factory=list)
    """The rewards of the prompts that were seated last."""
    branches: ClassVar[int] = 1

    @property
    def readers(self) -> list[Reader]:
        return [self.reader]

    def seat(self, started: Iterable[Prefill], rows: Sequence[int], prompts: Sequence[int]) -> None:
        (one,) = started
        self.prompts.append(self.reader.seat(one, rows, prompts))

    def stepping(self, batch: Batch, rule: dict[str, Any]) -> Stepping:
        return _Accepting(batch, self, rule)


@dataclass
class _State:
    """A sample's segment under way."""

    prompt_reward: float
    numbers: Iterator[float]
    accepting: Iterator[float]
    start: int = 0
    """Where in the sample's tokens it begins."""
    tried: list[tuple[float, list[int]]] = field(default_factory=list)


class _Accepting:
    """One token a step for every row of a batch, and a verdict where a segment ends."""

    def __init__(self, batch: Batch, judge: Judge, rule: dict[str, Any]) -> None:
        self.batch, self.judge, self.segments, self.rule = batch, judge, judge.segments, rule
        self.states: dict[Seat, _State] = {}
        # The policy's logits after what each row has read, and after where its segment begins; the judge's reward of it.
        self.logits, self.saved = torch.empty(0), torch.empty(0)
        self.rewards = batch.hold(dtype=torch.float32)

    def step(self) -> list[Seat]:
        """Every row draws one token, new ones among them; returns the samples that end there."""
        batch = self.batch
        self._admit()
        rows = len(batch.seats)
        if not rows:
            return []
        u = torch.tensor([next(self.states[seat].numbers) for seat in batch.seats], dtype=torch.float64)
        tokens = inverse_cdf(self.logits[:rows], u.to(batch.device), **self.rule)
        for seat, token in zip(batch.seats, tokens.tolist(), strict=True):
            if token < 0:
                raise NotFinite(seat.prompt, seat.request.key)
            seat.ids.append(token)
        batch.policy.count.drawn += rows
        self.logits[:rows] = batch.policy.step(tokens)
        if self.judge.ending:
            tokens = tokens.masked_fill(torch.isin(tokens, batch.ends), self.judge.ending[0])
        self.rewards[:rows] = self.judge.reader.step(tokens)
        left = batch.leave([slot for slot in self._judged() if batch.is_over(batch.seats[slot])])
        for seat in left:
            del self.states[seat]
        return left

    def _admit(self) -> None:
        arrivals, first = self.batch.admit()
        if not arrivals:
            return
        logits = torch.cat(first)
        if not len(self.logits):
            self.logits = self.batch.hold(logits.shape[1], dtype=logits.dtype)
            self.saved = self.batch.hold(logits.shape[1], dtype=logits.dtype)
        own = slice(len(self.batch.seats) - len(arrivals), len(self.batch.seats))
        self.logits[own] = self.saved[own] = logits
        for seat, reward in zip(arrivals, torch.cat(self.judge.prompts).tolist(), strict=True):
            seed, key = seat.request.seed, seat.request.key
            accepting = _numbers(seed, f"{key}/accepting", seat.number)
            self.states[seat] = _State(reward, _numbers(seed, key, seat.number), accepting)
        self.judge.prompts.clear()

    def _judged(self) -> list[int]:
        """The rows whose segment ended here and was accepted; what was rejected is taken back."""
        segments = self.segments
        uncertain = (entropy(self.logits[: len(self.batch.seats)]) >= segments.entropy).tolist()
        due = []
        for slot, seat in enumerate(self.batch.seats):
            length = len(seat.ids) - self.states[seat].start
            is_long = length >= segments.longest or (uncertain[slot] and length >= segments.shortest)
            if is_long or self.batch.is_over(seat):
                due.append(slot)
        rewards = self._read(due) if due else []
        return [slot for slot, reward in zip(due, rewards, strict=True) if self._is_accepted(slot, reward)]

    def _read(self, rows: Sequence[int]) -> list[float]:
        """The rewards of the answers in `rows` as far as they go; of one that has ended, after what stands behind an end."""
        rewards = self.rewards[rows]
        ended = [place for place, row in enumerate(rows) if self.batch.seats[row].ids[-1] in self.batch.eos_ids]
        if ended and self.judge.ending[1:]:
            behind = _causal(self.judge.reader, self.judge.ending[1:], [rows[place] for place in ended])
            rewards[ended] = behind[:, -1].to(rewards)
        found: list[float] = rewards.tolist()
        for row, reward in zip(rows, found, strict=True):
            if not math.isfinite(reward):
                seat = self.batch.seats[row]
                raise NotFinite(seat.prompt, seat.request.key)
        return found

    def _is_accepted(self, slot: int, reward: float) -> bool:
        seat, segments = self.batch.seats[slot], self.segments
        state = self.states[seat]
        bar = threshold(len(seat.ids), seat.request.limit, state.prompt_reward, segments.target, segments.alpha)
        segment = seat.ids[state.start :]
        state.tried.append((reward, segment))
        refused = next(state.accepting) >= acceptance(reward, bar, segments.beta)
        if self.judge.observer is not None:
            tell_segment(
                self.judge.observer, seat, state.start, segment, reward, bar, "refused" if refused else "accepted"
            )
        if refused:
            if len(state.tried) < segments.tries:
                self._take_back(slot, seat, state)
                return False
            best = max(range(len(state.tried)), key=lambda i: (state.tried[i][0], -i))
            if self.judge.observer is not None:
                tell_segment(
                    self.judge.observer,
                    seat,
                    state.start,
                    state.tried[best][1],
                    state.tried[best][0],
                    bar,
                    "best of all tries",
                )
            if best != len(state.tried) - 1:
                self._take_back(slot, seat, state)
                segment = state.tried[best][1]
                seat.ids += segment
                self.logits[slot] = _causal(self.batch.policy, segment, [slot])[0, -1]
                _causal(self.judge.reader, segment, [slot])
                for reader in self.batch.readers:
                    reader.keep(torch.arange(len(segment), device=self.batch.device)[None], [slot])
        state.start, state.tried, seat.settled = len(seat.ids), [], len(seat.ids)
        self.saved[slot] = self.logits[slot]
        return True

    def _take_back(self, slot: int, seat: Seat, state: _State) -> None:
        for reader in self.batch.readers:
            reader.forget(slot, len(seat.ids) - state.start)
        del seat.ids[state.start :]
        self.logits[slot] = self.saved[slot]


def _causal(reader: Reader, text: Sequence[int], rows: Sequence[int]) -> Tensor:
    """What a reader gives at every token [rows, tokens, ...] of a text behind each of `rows`."""
    ahead = torch.arange(len(text), device=reader.device)
    tokens = torch.tensor(text, device=reader.device).expand(len(rows), -1)
    return reader.look(tokens, (ahead <= ahead[:, None])[None], ahead, rows)


def _numbers(seed: int, key: str, sample: int) -> Iterator[float]:
    """The stream of a sample, without end."""
    done = 0
    for doubling in from_number(8):
        stream = uniforms(seed, key, sample, 1 << doubling)
        yield from stream[done:]
        done = len(stream)
