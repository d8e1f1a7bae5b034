"""Requests that come at any time, decoded together: continuous batching for every decoding rule.

One thread owns the models. Requests to one policy at one temperature and nucleus share a batch, whose rows they take and
leave as they come and end; such a lane lives as long as somebody waits for it. What a request draws belongs to its seed and
its prompt, as everywhere: it is what `alignflow decode` gives at that seed, whoever else is being served.
"""

from __future__ import annotations

import contextlib
import queue
import threading
import traceback
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Literal

import torch
from jinja2 import TemplateError

from registry.artifacts import Artifact
from registry.bases import Bases
from registry.dialogue_text import encode_plain, encode_prompt
from registry.four_bits import is_rounded
from registry.language_models import device
from registry.rows import Prompt
from specs.problems import UserError
from tasks.answers import Rule, best_draw, rule_of
from tasks.batch import Batch, NotFinite, Request, Seat
from tasks.growing_text import GrowingText
from tasks.guides import Guides
from tasks.models import Models
from tasks.reader import Positions, Reader, next_token_logits
from tasks.sampler import stepping
from tasks.slot_cache import check_room

PROMPTS = 4096


@dataclass(frozen=True)
class Asked:
    """One request."""

    policy: str
    prompt: Prompt
    is_plain: bool
    """Whether the prompt is one text to go on from as it stands, without the models' templates."""
    samples: int
    max_new_tokens: int
    seed: int
    temperature: float | None = None
    """In place of the rule's own."""
    top_p: float | None = None
    """In place of the rule's own."""
    stop: tuple[str, ...] = ()
    """Texts before which an answer ends."""


@dataclass(frozen=True)
class Piece:
    """More of an answer's text."""

    choice: int
    text: str


@dataclass(frozen=True)
class End:
    """An answer has come to its end."""

    choice: int
    reason: Literal["stop", "length"]


@dataclass(frozen=True)
class Done:
    """All answers have."""

    prompt_tokens: int
    drawn_tokens: int
    """Of all draws, those that were not chosen too."""


@dataclass(frozen=True)
class Failed:
    """There will be no more."""

    message: str
    is_askers: bool
    """Whether the request was at fault."""


Event = Piece | End | Done | Failed
Tell = Callable[[Event], None]


class Live(threading.Thread):
    """See the module. `start` it; `ask` from any thread."""

    def __init__(self, policies: Mapping[str, Artifact], *, rows: int, max_new_tokens: int) -> None:
        super().__init__(name="decoding", daemon=True)
        self.policies, self.rows, self.max_new_tokens = policies, rows, max_new_tokens
        self.models = Models(rows, Bases())
        self._coming: queue.SimpleQueue[_Open | None] = queue.SimpleQueue()

    def load(self) -> None:
        """Everything that the policies are made of, so that no request waits for it. Raises `UserError` for what cannot be
        loaded, or cannot guide what it is to guide."""
        for name in self.policies:
            _Lane(self, name, None, None)

    def ask(self, asked: Asked, tell: Tell) -> Callable[[], None]:
        """`tell` hears of the answers in the thread of this object, in the end of `Done` or `Failed`; calling what is
        returned gives the request up."""
        opened = _Open(asked, tell)
        self._coming.put(opened)
        return opened.give_up

    def close(self) -> None:
        """End once the step under way is over; what is not answered by then fails."""
        self._coming.put(None)
        self.join()

    @torch.inference_mode()
    def run(self) -> None:
        lanes: list[_Lane] = []
        while True:
            for opened in self._arrivals(wait=not lanes):
                if opened is None:
                    for lane in lanes:
                        lane.fail("the server is shutting down")
                    return
                try:
                    self._seat(opened, lanes)
                except (UserError, TemplateError) as error:
                    opened.tell(Failed(str(error), is_askers=True))
            for lane in lanes:
                try:
                    lane.step()
                except NotFinite:
                    lane.fail(f"`{lane.policy.name}` gave logits that are no numbers; look at its weights")
                except Exception as error:  # a defect of ours; whoever waits is to hear of it, and others are served on
                    traceback.print_exc()
                    lane.fail(f"a defect of the server: {type(error).__name__}")
            lanes = [lane for lane in lanes if lane.opened]

    def _seat(self, opened: _Open, lanes: list[_Lane]) -> None:
        key = (opened.asked.policy, opened.asked.temperature, opened.asked.top_p)
        lane = next((lane for lane in lanes if lane.key == key and lane.takes_more), None)
        if lane is None:
            lane = _Lane(self, *key)
            lanes.append(lane)
        lane.add(opened)

    def _arrivals(self, wait: bool) -> Iterator[_Open | None]:
        with contextlib.suppress(queue.Empty):
            if wait:
                yield self._coming.get()
            while True:
                yield self._coming.get_nowait()


@dataclass(eq=False)
class _Open:
    """A request under way."""

    asked: Asked
    tell: Tell
    is_given_up: bool = False
    prompt_tokens: int = 0
    texts: dict[int, GrowingText] = field(default_factory=dict)
    """By the number of a draw."""
    tokens: int = 0

    def give_up(self) -> None:
        self.is_given_up = True


class _Lane:
    """The requests to one policy at one distribution."""

    def __init__(self, live: Live, name: str, temperature: float | None, top_p: float | None) -> None:
        self.key = (name, temperature, top_p)
        policy = live.policies[name]
        rule = rule_of(policy)
        self.live, self.policy = live, policy
        self.rule: Rule = replace(
            rule,
            temperature=rule.temperature if temperature is None else temperature,
            top_p=rule.top_p if top_p is None else top_p,
        )
        self.loaded = live.models.language_model(rule.model, "rounded" if is_rounded(rule.model) else None)
        self.guides = Guides(policy, self.loaded, live.models) if rule.guided else None
        if rule.reward is not None:
            live.models.score(rule.reward)
        self.reader = Reader(next_token_logits(self.loaded.model), [], device(), None, Positions())
        way = self.guides.way if self.guides else None
        slots = max(live.rows // (way.branches if way else 1), 1)
        self.batch = Batch(self.reader, way, slots, live.max_new_tokens, frozenset(self.loaded.eos_ids))
        self.stepping = stepping(self.batch, self.rule.temperature, self.rule.top_k, self.rule.top_p)
        self.opened: dict[Request, _Open] = {}

    @property
    def is_streamed(self) -> bool:
        """Whether a draw is an answer before all others are there."""
        return self.rule.reward is None

    @property
    def takes_more(self) -> bool:
        """A lane forgets no prompt while it lives, so one that has had many is left to end."""
        return len(self.reader.prompts) < PROMPTS

    def add(self, opened: _Open) -> None:
        """Raises `UserError` for a request that cannot be decoded."""
        asked, place = opened.asked, len(self.reader.prompts)
        tokenizer, prompt = self.loaded.tokenizer, asked.prompt
        if asked.is_plain:
            encoded = encode_plain(tokenizer, prompt.messages[-1]["content"])
        else:
            encoded = encode_prompt(tokenizer, prompt.messages)
        try:
            check_room(self.loaded.model, ["of this request"], [encoded], asked.max_new_tokens)
        except ValueError as error:
            raise UserError(str(error)) from None
        if self.guides:
            self.guides.give(prompt, asked.max_new_tokens, is_plain=asked.is_plain)
        self.reader.prompts.append(encoded)
        opened.prompt_tokens = len(encoded)
        draws = 1 if self.rule.temperature == 0 else asked.samples * self.rule.n
        opened.texts = {number: GrowingText(tokenizer, asked.stop) for number in range(draws)}
        request = Request(place, f"{prompt.id}/0", asked.seed, draws, asked.max_new_tokens)
        self.opened[request] = opened
        self.batch.waiting.append(request)

    def step(self) -> None:
        """Every row goes on, and who waits hears of it."""
        for request, opened in list(self.opened.items()):
            if opened.is_given_up:
                self._close(request)
        left = self.stepping.step()
        gone = set(left)
        for seat in (*self.batch.seats, *left):
            if seat.is_wanted and seat.request in self.opened:
                self._told(seat, seat in gone)
        for request, opened in list(self.opened.items()):
            if all(text.reason for text in opened.texts.values()):
                self._answer(opened)
                opened.tell(Done(opened.prompt_tokens, opened.tokens))
                self._close(request)

    def fail(self, message: str) -> None:
        """All requests of the lane."""
        for opened in self.opened.values():
            opened.tell(Failed(message, is_askers=False))
        self.opened.clear()

    def _told(self, seat: Seat, is_over: bool) -> None:
        """What a draw has come to."""
        opened = self.opened[seat.request]
        text = opened.texts[seat.number]
        opened.tokens += seat.settled - text.tokens
        finished = is_over and seat.ids[-1] in self.batch.eos_ids
        more = text.grow(seat.ids[: seat.settled], is_over=is_over, finished=finished)
        if text.reason:
            seat.is_wanted = False
        if self.is_streamed:
            for choice in self._choices(opened, seat.number):
                if more:
                    opened.tell(Piece(choice, more))
                if text.reason:
                    opened.tell(End(choice, text.reason))

    def _choices(self, opened: _Open, number: int) -> Sequence[int]:
        return range(opened.asked.samples) if self.rule.temperature == 0 else [number]

    def _answer(self, opened: _Open) -> None:
        """The answers that a reward chooses among all draws."""
        if self.rule.reward is None:
            return
        samples = opened.asked.samples
        texts = [opened.texts[number] for number in sorted(opened.texts)]
        score = self.live.models.score(self.rule.reward)
        rewards = score([opened.asked.prompt.messages] * len(texts), [text.whole for text in texts])
        signed = [self.rule.sign * value for value in rewards]
        for choice in range(samples):
            text = texts[0 if len(texts) == 1 else best_draw(signed, choice, samples)]
            assert text.reason is not None
            if text.whole:
                opened.tell(Piece(choice, text.whole))
            opened.tell(End(choice, text.reason))

    def _close(self, request: Request) -> None:
        del self.opened[request]
        self.batch.drop(request)
