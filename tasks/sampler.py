"""Many samples of each prompt from one prefill of that prompt, at full batches all the way.

The random numbers of a sample come from (seed, its prompt's key, its number) alone: neither the batch nor the order of the
prompts changes what is drawn, but for how the model's arithmetic rounds in batches of other shapes.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from registry.methods.draws import check_rule, inverse_cdf
from tasks.batch import Batch, NotFinite, Seat
from tasks.guidance import Guidance, Now
from tasks.reader import Positions, Reader, next_token_logits
from tasks.slot_cache import check_room, evaluating


@dataclass(frozen=True)
class Sample:
    """One response: its tokens, the end-of-sequence token included if it was reached."""

    ids: tuple[int, ...]
    finished: bool


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
    check_rule(temperature, top_k, top_p)
    check_request(model, prompts, keys, samples, max_new_tokens, rows)
    if temperature == 0 and samples != 1:
        raise ValueError(
            f"samples is {samples} at temperature 0: greedy decoding has one outcome; "
            "ask for 1 sample or raise the temperature"
        )
    policy = policy_reader(model, prompts, count, on_rows)
    total = len(prompts) * samples
    ends = torch.tensor(sorted(eos_ids), device=policy.device)

    def draw(logits: Tensor, u: Tensor, drawn: Tensor) -> Tensor:
        if guidance is not None:
            now = Now(batch.seats, max_new_tokens - drawn, ends)
            return guidance.draw(logits, u, now, temperature, top_k, top_p)
        return inverse_cdf(logits, u, temperature=temperature, top_k=top_k, top_p=top_p)

    with evaluating(model):
        batch = Batch(policy, guidance, samples, min(rows, total), max_new_tokens)
        stepping = _Stepping(batch, draw, seed, keys, frozenset(eos_ids))
        return collect(stepping.step, len(prompts), samples, frozenset(eos_ids), on_progress)


def policy_reader(
    model: Any,
    prompts: Sequence[Sequence[int]],
    count: Positions | None,
    on_rows: Callable[[Sequence[int]], None] | None = None,
) -> Reader:
    """The language model that is decoded, with `count`, if given, to be added to."""
    device = torch.device(model.get_input_embeddings().weight.device)
    return Reader(next_token_logits(model), prompts, device, on_rows, Positions() if count is None else count)


def collect(
    step: Callable[[], list[Seat]],
    prompts: int,
    samples: int,
    eos_ids: Collection[int],
    on_progress: Callable[[int, int], None] | None,
) -> list[list[Sample]]:
    """`[prompt][sample]`, of the seats that `step` says have ended, again and again until all have."""
    results: list[dict[int, Sample]] = [{} for _ in range(prompts)]
    done, total = 0, prompts * samples
    while done < total:
        ended = step()
        for seat in ended:
            results[seat.prompt][seat.number] = Sample(tuple(seat.ids), seat.ids[-1] in eos_ids)
        done += len(ended)
        if ended and on_progress is not None:
            on_progress(done, total)
    return [[row[number] for number in range(samples)] for row in results]


class _Stepping:
    """One token a step for every row of a batch."""

    def __init__(
        self,
        batch: Batch,
        draw: Callable[[Tensor, Tensor, Tensor], Tensor],
        seed: int,
        keys: Sequence[str],
        eos_ids: frozenset[int],
    ) -> None:
        self.batch, self.draw, self.seed, self.keys, self.eos_ids = batch, draw, seed, keys, eos_ids
        # The token that each row has drawn and not read, how many it has drawn, and its random numbers.
        self.tokens, self.drawn = batch.hold(), batch.hold()
        self.u = batch.hold(batch.new, dtype=torch.float64)

    def step(self) -> list[Seat]:
        """Every row draws one token, new ones among them; returns the samples that end there."""
        batch = self.batch
        logits = self._read()
        arrivals, first = batch.admit()
        logits += first
        rows = len(batch.seats)
        if arrivals:
            self.u[rows - len(arrivals) : rows] = batch.numbers(arrivals, self.seed, self.keys)
        drawn = self.drawn[:rows]
        u = self.u[:rows].gather(1, drawn[:, None])[:, 0]
        self.tokens[:rows] = self.draw(logits[0] if len(logits) == 1 else torch.cat(logits), u, drawn)
        drawn += 1
        return batch.leave(self._note())

    def _read(self) -> list[Tensor]:
        """The policy's logits after each row's last token."""
        if not self.batch.seats:
            return []
        tokens = self.tokens[: len(self.batch.seats)]
        if isinstance(self.batch.companion, Guidance):
            self.batch.companion.read(tokens)
        return [self.batch.policy.step(tokens)]

    def _note(self) -> list[int]:
        """Write the tokens down; the rows whose samples end here."""
        seats = self.batch.seats
        # The one point of a step where the host waits for the device.
        for seat, token in zip(seats, self.tokens[: len(seats)].tolist(), strict=True):
            if token < 0:
                raise NotFinite(seat.prompt, self.keys[seat.prompt])
            seat.ids.append(token)
        return [
            slot for slot, seat in enumerate(seats) if seat.ids[-1] in self.eos_ids or len(seat.ids) == self.batch.new
        ]


def check_request(
    model: Any, prompts: Sequence[Sequence[int]], keys: Sequence[str], samples: int, max_new_tokens: int, rows: int
) -> None:
    """Refuse what cannot be decoded, in words for the person who asked for it."""
    for name, value in (("samples", samples), ("max_new_tokens", max_new_tokens), ("rows", rows)):
        if value < 1:
            raise ValueError(f"{name} is {value}; it must be at least 1")
    if len(keys) != len(prompts):
        raise ValueError(f"{len(prompts)} prompts came with {len(keys)} keys")
    check_room(model, keys, prompts, max_new_tokens)
