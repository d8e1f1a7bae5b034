"""CARDS: segments of an answer sampled until the reward model accepts them, on caches that go back instead of starting anew.

Every row draws a token a step. Where a segment ends it is read by the judge, behind what the judge has accepted; if it is
rejected, the row's length goes back to where the segment began, whose logits were kept, and nothing is read again. Tokens
are drawn with the numbers of (seed, prompt, sample) one after the other, rejected ones too; so a sample of which nothing is
rejected is the policy's own.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Collection, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from itertools import count as from_number
from typing import Any

import torch
from torch import Tensor

from registry.methods.cards import acceptance, entropy, threshold
from registry.methods.draws import check_rule, inverse_cdf, uniforms
from tasks.batch import Batch, NotFinite, Seat
from tasks.reader import Positions, Reader
from tasks.sampler import Sample, check_request, collect, policy_reader
from tasks.slot_cache import Prefill, evaluating
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
    """The reward model, which has read what was accepted."""

    reader: Reader
    tail: Sequence[int] = ()
    """What its template writes behind the end of an answer, after which a finished one is scored."""
    observer: Observer | None = None
    """Hears of every segment."""
    prompts: list[Tensor] = field(default_factory=list)
    """The rewards of the prompts that were seated last."""

    @property
    def readers(self) -> list[Reader]:
        return [self.reader]

    def seat(self, started: Iterable[Prefill], rows: Sequence[int], prompts: Sequence[int]) -> None:
        (one,) = started
        self.prompts.append(self.reader.seat(one, rows, prompts))


@dataclass
class _State:
    """A sample's segment under way."""

    prompt_reward: float
    numbers: Iterator[float]
    accepting: Iterator[float]
    start: int = 0
    """Where in the sample's tokens it begins."""
    tried: list[tuple[float, list[int]]] = field(default_factory=list)


@torch.inference_mode()
def sample_by_segments(
    model: Any,
    prompts: Sequence[Sequence[int]],
    *,
    judge: Judge,
    segments: Segments,
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
) -> list[list[Sample]]:
    """`result[i][j]` is sample j of prompt i; see `tasks.sampler.sample`."""
    check_rule(temperature, top_k, top_p)
    check_request(model, prompts, keys, samples, max_new_tokens, rows)
    policy = policy_reader(model, prompts, count)
    rule = {"temperature": temperature, "top_k": top_k, "top_p": top_p}
    with evaluating(model):
        batch = Batch(policy, judge, samples, min(rows, len(prompts) * samples), max_new_tokens)
        stepping = _Stepping(batch, judge, segments, seed, keys, frozenset(eos_ids), rule)
        return collect(stepping.step, len(prompts), samples, frozenset(eos_ids), on_progress)


class _Stepping:
    """One token a step for every row of a batch, and a verdict where a segment ends."""

    def __init__(
        self,
        batch: Batch,
        judge: Judge,
        segments: Segments,
        seed: int,
        keys: Sequence[str],
        eos_ids: frozenset[int],
        rule: dict[str, Any],
    ) -> None:
        self.batch, self.judge, self.segments = batch, judge, segments
        self.seed, self.keys, self.eos_ids, self.rule = seed, keys, eos_ids, rule
        self.states: dict[int, _State] = {}
        # The policy's logits after what each row has read, and after where its segment begins.
        self.logits, self.saved = torch.empty(0), torch.empty(0)

    def step(self) -> list[Seat]:
        """Every row draws one token, new ones among them; returns the samples that end there."""
        batch = self.batch
        self._admit()
        rows = len(batch.seats)
        u = torch.tensor([next(self.states[id(seat)].numbers) for seat in batch.seats], dtype=torch.float64)
        tokens = inverse_cdf(self.logits[:rows], u.to(batch.device), **self.rule)
        for seat, token in zip(batch.seats, tokens.tolist(), strict=True):
            if token < 0:
                raise NotFinite(seat.prompt, self.keys[seat.prompt])
            seat.ids.append(token)
        self.logits[:rows] = batch.policy.step(tokens)
        ended = [slot for slot in self._judged() if self._is_over(batch.seats[slot])]
        for slot in ended:
            del self.states[id(batch.seats[slot])]
        return batch.leave(ended)

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
            key = self.keys[seat.prompt]
            accepting = _numbers(self.seed, f"{key}/accepting", seat.number)
            self.states[id(seat)] = _State(reward, _numbers(self.seed, key, seat.number), accepting)
        self.judge.prompts.clear()

    def _is_over(self, seat: Seat) -> bool:
        return seat.ids[-1] in self.eos_ids or len(seat.ids) == self.batch.new

    def _judged(self) -> list[int]:
        """The rows whose segment ended here and was accepted; what was rejected is taken back."""
        segments = self.segments
        uncertain = (entropy(self.logits[: len(self.batch.seats)]) >= segments.entropy).tolist()
        due = []
        for slot, seat in enumerate(self.batch.seats):
            length = len(seat.ids) - self.states[id(seat)].start
            is_long = length >= segments.longest or (uncertain[slot] and length >= segments.shortest)
            if is_long or self._is_over(seat):
                due.append(slot)
        rewards = self._read(due) if due else []
        return [slot for slot, reward in zip(due, rewards, strict=True) if self._is_accepted(slot, reward)]

    def _read(self, rows: Sequence[int]) -> list[float]:
        """The rewards of the answers in `rows` up to the end of their segments."""
        seats = [self.batch.seats[row] for row in rows]
        texts = [seat.ids[self.states[id(seat)].start :] for seat in seats]
        texts = [[*text, *(self.judge.tail if text[-1] in self.eos_ids else ())] for text in texts]
        found = _causal(self.judge.reader, texts, rows)
        rewards: list[float] = found[range(len(texts)), [len(text) - 1 for text in texts]].tolist()
        for seat, reward in zip(seats, rewards, strict=True):
            if not math.isfinite(reward):
                raise NotFinite(seat.prompt, self.keys[seat.prompt])
        return rewards

    def _is_accepted(self, slot: int, reward: float) -> bool:
        seat, segments = self.batch.seats[slot], self.segments
        state = self.states[id(seat)]
        bar = threshold(len(seat.ids), self.batch.new, state.prompt_reward, segments.target, segments.alpha)
        segment = seat.ids[state.start :]
        state.tried.append((reward, segment))
        refused = next(state.accepting) >= acceptance(reward, bar, segments.beta)
        if self.judge.observer is not None:
            tell_segment(self.judge.observer, seat, state.start, segment, reward, bar, not refused)
        if refused:
            if len(state.tried) < segments.tries:
                self._take_back(slot, seat, state)
                return False
            best = max(range(len(state.tried)), key=lambda i: (state.tried[i][0], -i))
            if best != len(state.tried) - 1:
                self._take_back(slot, seat, state)
                segment = state.tried[best][1]
                seat.ids += segment
                self.logits[slot] = _causal(self.batch.policy, [segment], [slot])[0, -1]
                self.batch.policy.keep(torch.arange(len(segment), device=self.batch.device)[None], [slot])
                _causal(self.judge.reader, [segment], [slot])
        self.judge.reader.keep(torch.arange(len(segment), device=self.batch.device)[None], [slot])
        state.start, state.tried = len(seat.ids), []
        self.saved[slot] = self.logits[slot]
        return True

    def _take_back(self, slot: int, seat: Seat, state: _State) -> None:
        self.batch.policy.forget(slot, len(seat.ids) - state.start)
        del seat.ids[state.start :]
        self.logits[slot] = self.saved[slot]


def _causal(reader: Reader, texts: Sequence[Sequence[int]], rows: Sequence[int]) -> Tensor:
    """What a reader gives at every token of one text behind each of `rows`."""
    width = max(map(len, texts))
    tokens = torch.tensor([[*text, *[0] * (width - len(text))] for text in texts], device=reader.device)
    seen = torch.ones(width, width, dtype=torch.bool, device=reader.device).tril()
    return reader.look(tokens, seen[None], torch.arange(width, device=reader.device), rows)


def _numbers(seed: int, key: str, sample: int) -> Iterator[float]:
    """The stream of a sample, without end."""
    done = 0
    for doubling in from_number(8):
        stream = uniforms(seed, key, sample, 1 << doubling)
        yield from stream[done:]
        done = len(stream)
