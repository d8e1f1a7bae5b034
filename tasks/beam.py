"""Beam search, plain and diverse: the few best responses to each prompt, found side by side.

A step extends every live hypothesis by one token, sets aside those of the best that end there and
goes on with the best of the others, so that an ended hypothesis never takes a live one's place.
Diverse search does so group by group and charges a group for tokens that earlier groups have just
chosen. Each prompt is prefilled once, each live hypothesis holds a row of the cache, and when the
search of a prompt ends, the next prompt takes its rows over. A prompt's responses do not depend on
who shares its batch, but for how the model's arithmetic rounds in batches of other shapes.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable, Collection, Iterator, Sequence
from dataclasses import dataclass, field
from itertools import islice
from typing import Any, NamedTuple

import torch
from torch import Tensor

from tasks.batch import PREFILL, NotFinite
from tasks.reader import FIRST_ROOM, next_token_logits
from tasks.slot_cache import Prefill, SlotCache, check_room, evaluating, prefill

# Ended hypotheses are ranked by their sum of log-probabilities over their length to this power.
LENGTH_PENALTY = 1.0

# For each row of a batch, its most probable next tokens with their log-probabilities.
_Choices = list[list[tuple[int, float]]]


@dataclass(frozen=True)
class Beam:
    """One response: its tokens, the end-of-sequence token included if it was reached.

    `log_prob` is the sum over `ids` of the model's log-probabilities at the search's temperature,
    in nats, without any penalty.
    """

    ids: list[int]
    finished: bool
    log_prob: float


@dataclass(frozen=True)
class _Request:
    model: Any
    prompts: Sequence[Sequence[int]]
    beams: int
    groups: int
    diversity: float
    max_new_tokens: int
    eos_ids: frozenset[int]
    temperature: float
    rows: int

    @property
    def device(self) -> torch.device:
        return torch.device(self.model.get_input_embeddings().weight.device)


@torch.inference_mode()
def beam_search(
    model: Any,
    prompts: Sequence[Sequence[int]],
    *,
    beams: int,
    groups: int = 1,
    diversity: float = 0.0,
    max_new_tokens: int,
    eos_ids: Collection[int],
    temperature: float = 1.0,
    rows: int = 64,
    on_progress: Callable[[int, int], None] | None = None,
) -> list[list[Beam]]:
    """`result[i]` holds `beams` responses to prompt i, best first by log-probability over length.

    More than one group is diverse beam search (Vijayakumar et al., arXiv 1610.02424, Algorithm 1,
    Hamming diversity), beams / groups hypotheses each. At each step a token costs a group
    `diversity` nats for every candidate that ends with it among the beams / groups best ones of
    each earlier group; the costs stay in the sums by which the group ranks. An end-of-sequence token
    counts like any other and an ended group no more (transformers 4 left the former out and counted
    the latter's padding). Groups may return the same response.

    Stopping rule, that of `generate(early_stopping=False)` in transformers 5, group by group: those
    of a step's beams / groups best candidates that end are set aside, and the best beams / groups of
    all set aside are kept, by sum over length. The group ends when it keeps that many and no live
    hypothesis at its present length beats the worst of them, though a longer one might have. At
    `max_new_tokens` every candidate ends.

    Of equal candidates the lowest token id comes first. There are fewer than `beams` responses only
    where no more exist. The logits are divided by `temperature`; at most `rows` hypotheses are
    decoded at a time; `on_progress` hears (ended, all) prompts. Raises ValueError, in words, for a
    request that cannot be met.
    """
    request = _Request(
        model, prompts, beams, groups, diversity, max_new_tokens, frozenset(eos_ids), temperature, rows
    )  # fmt: skip
    _check(request)
    with evaluating(model):
        return _run(request, on_progress)


def _run(request: _Request, on_progress: Callable[[int, int], None] | None) -> list[list[Beam]]:
    results: list[list[Beam]] = [[] for _ in request.prompts]
    places = min(request.rows // request.beams, len(results))
    longest = max(map(len, request.prompts), default=0)
    cache = SlotCache(
        places * request.beams,
        room=longest + min(request.max_new_tokens, FIRST_ROOM),
        most=longest + request.max_new_tokens,
        device=request.device,
    )
    queue = _arrivals(request)
    searches: list[_Search] = []
    done = 0
    while done < len(results):
        seated = _close_up(cache, searches)
        for search, started in islice(queue, places - len(searches)):
            searches.append(search)
            seated += _seat(cache, search, started)
        if seated:
            choices = _decode(request, cache, seated)
            for search in searches:
                search.advance(choices)
        ended = [search for search in searches if not search.live]
        searches = [search for search in searches if search.live]
        for search in ended:
            results[search.prompt] = search.responses()
        done += len(ended)
        if ended and on_progress is not None:
            on_progress(done, len(results))
    return results


@dataclass
class _Live:
    """A hypothesis under way. Its last token is still to be written, at `position` of `row`."""

    ids: list[int]
    log_prob: float
    # The log-probability less the penalties.
    score: float
    position: int
    # Its parent's until it is given its own.
    row: int


class _Candidate(NamedTuple):
    """A live hypothesis and one more token. Compared field by field, the least is the best."""

    cost: float
    token: int
    parent: int
    log_prob: float


@dataclass
class _Group:
    """A beam search of its own, but for what it is charged for."""

    size: int
    live: list[_Live]
    # With their sums over length, best first.
    ended: list[tuple[float, Beam]] = field(default_factory=list)

    def advance(self, request: _Request, choices: _Choices, chosen: Counter[int]) -> None:
        """One step; adds the last tokens of the best candidates to `chosen`."""
        length = len(self.live[0].ids) + 1
        candidates = sorted(
            _Candidate(request.diversity * chosen[token] - log_prob - parent.score, token, number, log_prob)
            for number, parent in enumerate(self.live)
            for token, log_prob in choices[parent.row]
        )
        best = candidates[: self.size]
        others = [candidate for candidate in candidates if candidate.token not in request.eos_ids]
        chosen.update(candidate.token for candidate in best)
        if length == request.max_new_tokens:
            others = []
        for candidate in best:
            finished = candidate.token in request.eos_ids
            if finished or not others:
                grown = self._grow(candidate)
                self.ended.append((_over_length(grown.score, length), Beam(grown.ids, finished, grown.log_prob)))
        self.ended = sorted(self.ended, key=lambda one: -one[0])[: self.size]
        self.live = [self._grow(candidate) for candidate in others[: self.size]]
        if self.live and len(self.ended) == self.size:
            worst, _ = self.ended[-1]
            if _over_length(self.live[0].score, length) <= worst:
                self.live = []

    def _grow(self, candidate: _Candidate) -> _Live:
        parent = self.live[candidate.parent]
        ids = [*parent.ids, candidate.token]
        return _Live(ids, parent.log_prob + candidate.log_prob, -candidate.cost, parent.position + 1, parent.row)


class _Search:
    """The search for one prompt; it has ended when nothing in it is live."""

    def __init__(self, request: _Request, prompt: int, row: int) -> None:
        self.request = request
        self.prompt = prompt
        size = request.beams // request.groups
        last = len(request.prompts[prompt]) - 1
        self.groups = [_Group(size, [_Live([], 0.0, 0.0, last, row)]) for _ in range(request.groups)]

    @property
    def live(self) -> list[_Live]:
        return [beam for group in self.groups for beam in group.live]

    def advance(self, choices: _Choices) -> None:
        """One step of every group that has not ended."""
        if not all(choices[beam.row] for beam in self.live):
            raise NotFinite(self.prompt, str(self.prompt))
        chosen: Counter[int] = Counter()
        for group in self.groups:
            if group.live:
                group.advance(self.request, choices, chosen)

    def responses(self) -> list[Beam]:
        beams = [beam for group in self.groups for _, beam in group.ended]
        return sorted(beams, key=lambda beam: -_over_length(beam.log_prob, len(beam.ids)))


def _over_length(total: float, length: int) -> float:
    return total / float(length**LENGTH_PENALTY)


def _arrivals(request: _Request) -> Iterator[tuple[_Search, Prefill]]:
    """Every search after its first token; its live hypotheses name rows of the prefill beside it."""
    order = sorted(range(len(request.prompts)), key=lambda prompt: -len(request.prompts[prompt]))
    for start in range(0, len(order), PREFILL):
        chunk = order[start : start + PREFILL]
        started = prefill(
            next_token_logits(request.model), [request.prompts[prompt] for prompt in chunk], request.device
        )
        choices = _choices(request, started.last)
        for row, prompt in enumerate(chunk):
            search = _Search(request, prompt, row)
            search.advance(choices)
            yield search, started


def _seat(cache: SlotCache, search: _Search, started: Prefill) -> list[_Live]:
    """Give each hypothesis of a new search the next row, with the prompt in it; returns them."""
    seated = search.live
    if seated:
        slots = range(cache.rows, cache.rows + len(seated))
        cache.fill(slots, started.cache, [beam.row for beam in seated])
        cache.rows += len(seated)
        for slot, beam in zip(slots, seated, strict=True):
            beam.row = slot
    return seated


def _close_up(cache: SlotCache, searches: Sequence[_Search]) -> list[_Live]:
    """Give each live hypothesis a row, its parent's copied there; returns them row by row."""
    # In the order of their parents, so that most rows stay where they are.
    seated = sorted((beam for search in searches for beam in search.live), key=lambda beam: beam.row)
    moves = [(beam.row, row) for row, beam in enumerate(seated) if beam.row != row]
    if moves:
        # A row may be both source and target: `move` gathers all the sources before it writes.
        sources, targets = torch.tensor(moves, device=cache.keys[0].device).unbind(1)
        cache.move(sources, targets)
    for row, beam in enumerate(seated):
        beam.row = row
    cache.rows = len(seated)
    return seated


def _decode(request: _Request, cache: SlotCache, seated: Sequence[_Live]) -> _Choices:
    tokens = torch.tensor([beam.ids[-1] for beam in seated], device=request.device)
    positions = torch.tensor([beam.position for beam in seated], device=request.device)
    mask = cache.step(positions, max(beam.position for beam in seated))
    logits = request.model(
        input_ids=tokens[:, None],
        attention_mask=mask,
        position_ids=positions[:, None],
        past_key_values=cache,
        use_cache=True,
    ).logits[:, -1]
    return _choices(request, logits)


def _choices(request: _Request, logits: Tensor) -> _Choices:
    """As many tokens of each row as a group can need; none where the logits are no distribution.

    A group looks at its best candidates and at as many that do not end. At most the other groups'
    tokens are charged for, and a charge lifts nothing that was below.
    """
    log_probs = torch.log_softmax(logits.float() / request.temperature, dim=-1)
    vocabulary = log_probs.shape[1]
    # The bits of positive floats order as the floats do. With the token behind them no two keys are
    # equal; among equals `topk` would choose as it likes.
    keys = log_probs.abs().view(torch.int32).long() * vocabulary + torch.arange(vocabulary, device=logits.device)
    count = min(request.beams + len(request.eos_ids), vocabulary)
    tokens = keys.topk(count, largest=False).values % vocabulary
    rows = zip(tokens.tolist(), log_probs.gather(1, tokens).tolist(), strict=True)
    return [[pair for pair in zip(*row, strict=True) if pair[1] > -math.inf] for row in rows]


def _check(request: _Request) -> None:
    """Refuse what cannot be searched, in words for the person who asked for it."""
    for name in ("beams", "groups", "max_new_tokens"):
        if getattr(request, name) < 1:
            raise ValueError(f"{name} is {getattr(request, name)}; it must be at least 1")
    if request.beams % request.groups:
        raise ValueError(f"{request.beams} beams cannot be shared out equally among {request.groups} groups")
    if not (request.diversity >= 0 and math.isfinite(request.diversity)):
        raise ValueError(f"diversity is {request.diversity}; it must be 0 (off) or more")
    if not (request.temperature > 0 and math.isfinite(request.temperature)):
        raise ValueError(f"temperature is {request.temperature}; it must be above 0 (one beam is greedy decoding)")
    if request.rows < request.beams:
        raise ValueError(f"rows is {request.rows}; the {request.beams} beams of one prompt need a row each")
    check_room(request.model, range(len(request.prompts)), request.prompts, request.max_new_tokens)
