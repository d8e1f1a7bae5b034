"""The requests to one policy under one distribution: they share a batch, whose rows they take and leave as they come and end."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from functools import partial

from pydantic import ValidationError

from registry.artifacts import Artifact
from registry.dialogue_text import decode_answer, decode_plain
from registry.rows import encode_request
from specs.load import say
from specs.problems import UserError
from tasks.answers import best_draw
from tasks.batch import Batch, Request, Seat
from tasks.growing_text import GrowingText
from tasks.guides import Guides
from tasks.models import Models
from tasks.requests import Asked, Done, End, Failed, Piece, Tell
from tasks.rules import Rule, rule_of
from tasks.sampler import policy_reader, stepping
from tasks.slot_cache import check_room, room

PROMPTS = 4096
"""A lane keeps every prompt that it was given, some kilobytes each: after so many it takes no more, and ends with its last."""


def rule_under(policy: Artifact, asked: Asked) -> Rule:
    """A policy's rule under a request's temperature and nucleus. Raises `UserError` where the rule has no such form."""
    rule, entry = rule_of(policy), policy.entry
    own = {"temperature": asked.temperature, "top_p": asked.top_p}
    changed = {name: value for name, value in own.items() if value is not None and value != getattr(rule, name)}
    # The temperature of a trained model's stage is that of its training.
    held = {
        name: value
        for name, value in changed.items()
        if entry.kind_name == "decode" and name in type(entry).model_fields
    }
    if held:
        try:  # what the language refuses of the rule is refused here
            type(entry).model_validate(entry.model_dump(by_alias=True) | held)
        except ValidationError as error:
            first = error.errors()[0]
            raise UserError(
                f"`{policy.name}`: {'.'.join(map(str, first['loc']))} {say(first)}".replace(":  ", ": ")
            ) from None
    return replace(
        rule, temperature=changed.get("temperature", rule.temperature), top_p=changed.get("top_p", rule.top_p)
    )


@dataclass(eq=False)
class Open:
    """A request under way."""

    asked: Asked
    tell: Tell
    is_given_up: bool = False
    is_apart: bool = False
    """Whether it is to be answered in a lane for itself."""
    prompt_tokens: int = 0
    texts: dict[int, GrowingText] = field(default_factory=dict)
    """By the number of a draw."""
    tokens: int = 0

    def give_up(self) -> None:
        self.is_given_up = True


class Lane:
    """The requests to one policy under one distribution."""

    def __init__(self, models: Models, policy: Artifact, rule: Rule, *, rows: int, max_new_tokens: int) -> None:
        """At most `rows` branches are decoded at a time, and `max_new_tokens` of an answer."""
        self.models, self.policy, self.rule, self.longest = models, policy, rule, max_new_tokens
        self.loaded = models.language_model(rule.model)
        self.guides = Guides(policy, self.loaded, models) if rule.guided else None
        if rule.reward is not None:
            models.score(rule.reward)
        self.reader = policy_reader(self.loaded.model, [], None)
        way = self.guides.way if self.guides else None
        slots = max(rows // (way.branches if way else 1), 1)
        self.batch = Batch(self.reader, way, slots, max_new_tokens, frozenset(self.loaded.eos_ids))
        self.stepping = stepping(self.batch, rule.temperature, rule.top_k, rule.top_p)
        self.opened: dict[Request, Open] = {}

    @property
    def streams(self) -> bool:
        """Whether a draw is an answer before all others are there."""
        return self.rule.reward is None

    @property
    def takes_more(self) -> bool:
        """A lane forgets no prompt while it lives, so one that has had many is left to end."""
        return len(self.reader.prompts) < PROMPTS and not self.is_apart

    @property
    def is_apart(self) -> bool:
        """Whether its request is to be answered by itself."""
        return any(opened.is_apart for opened in self.opened.values())

    def add(self, opened: Open) -> None:
        """Raises `UserError` for a request that cannot be decoded."""
        asked, place = opened.asked, len(self.reader.prompts)
        tokenizer, prompt = self.loaded.tokenizer, asked.prompt
        encoded = encode_request(tokenizer, prompt, asked.is_plain)
        limit = asked.max_new_tokens
        if limit is None:
            rooms = [self.longest, room(self.loaded.model) - len(encoded)]
            if self.guides and (left := self.guides.room(prompt, asked.is_plain)) is not None:
                rooms.append(left)
            limit = max(min(rooms), 1)
        try:
            check_room(self.loaded.model, ["of this request"], [encoded], limit)
        except ValueError as error:
            raise UserError(str(error).replace("max_new_tokens", "max_tokens")) from None
        if self.guides:
            self.guides.give(prompt, limit, is_plain=asked.is_plain, told="of this request")
        self.reader.prompts.append(encoded)
        opened.prompt_tokens = len(encoded)
        draws = 1 if self.rule.temperature == 0 else asked.samples * self.rule.n
        decode = partial(decode_plain if asked.is_plain else decode_answer, tokenizer)
        is_heard = asked.is_streamed and self.streams
        if not opened.texts:  # one that is asked again has told some of its text already
            opened.texts = {number: GrowingText(decode, asked.stop, is_heard=is_heard) for number in range(draws)}
        chosen = min(asked.samples, draws)
        request = Request(place, f"{prompt.id}/{asked.repetition}", asked.seed, draws, limit, chosen)
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
                try:
                    self._answer(opened)
                    opened.tell(Done(opened.prompt_tokens, opened.tokens))
                except UserError as error:  # the reward that chooses
                    opened.tell(Failed(str(error), "policy"))
                self._close(request)

    def empty(self) -> list[Open]:
        """The requests, that are the lane's no more."""
        opened = list(self.opened.values())
        self.opened.clear()
        return opened

    def _told(self, seat: Seat, is_over: bool) -> None:
        """What a draw has come to."""
        opened = self.opened[seat.request]
        text = opened.texts[seat.number]
        if text.reason:  # it came to its end before it was asked again
            seat.is_wanted = False
            return
        opened.tokens += seat.settled - text.tokens
        finished = is_over and seat.ids[-1] in self.batch.eos_ids
        more = text.grow(seat.ids[: seat.settled], is_over=is_over, finished=finished)
        if text.reason:
            seat.is_wanted = False
        if self.streams:
            for choice in self._choices(opened, seat.number):
                if more:
                    opened.tell(Piece(choice, more))
                if text.reason:
                    opened.tell(End(choice, text.reason))

    def _choices(self, opened: Open, number: int) -> Sequence[int]:
        return range(opened.asked.samples) if self.rule.temperature == 0 else [number]

    def _answer(self, opened: Open) -> None:
        """The answers that a reward chooses among all draws."""
        if self.rule.reward is None:
            return
        samples = opened.asked.samples
        texts = [opened.texts[number] for number in sorted(opened.texts)]
        score = self.models.score(self.rule.reward)
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
