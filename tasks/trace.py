"""What a decoding rule looked at before each choice: candidates with their scores, branches of a block, segments tried.

An event is a plain mapping with the place of its prompt and the number of its sample, so that it can be printed, or kept as
a line of JSON. Tokens are numbers here; who has the tokenizer writes them out.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

from torch import Tensor

from tasks.batch import Seat


@dataclass(frozen=True)
class Observer:
    """Who hears of choices."""

    tell: Callable[[Mapping[str, Any]], None]
    only: tuple[int, int] | None = None
    """The one prompt and draw that are to be heard of; all, if absent."""

    def hears(self, seat: Seat) -> bool:
        return self.only is None or self.only == (seat.prompt, seat.number)


Verdict = Literal["accepted", "refused", "best of all tries"]

SHOWN = 10
"""Of the whole vocabulary so many of the highest scores are told."""


def tell_tokens(
    observer: Observer,
    seats: Sequence[Seat],
    logits: Tensor,
    candidates: Tensor | None,
    given: Sequence[Tensor],
    whole: Tensor,
    place: Tensor,
    temperature: float,
) -> None:
    """One event a row: the candidates of highest guided score and the one that was taken, each with the policy's own
    log-probability, what each guide gives it, and its share of the guided distribution before top-k and top-p."""
    for row, seat in enumerate(seats):
        if not observer.hears(seat):
            continue
        own = logits[row].float().log_softmax(-1)
        shares = (whole[row] / temperature).softmax(-1) if temperature > 0 else None
        taken = int(place[row])
        places = whole[row].topk(min(SHOWN, whole.shape[1])).indices.tolist()
        own_best = int(own.argmax() if candidates is None else own[candidates[row]].argmax())
        places += [
            place for place in dict.fromkeys((taken, own_best)) if place not in places and place < whole.shape[1]
        ]
        ids = places if candidates is None else candidates[row, places].tolist()
        observer.tell({
            "prompt": seat.prompt,
            "sample": seat.number,
            "step": len(seat.ids),
            "candidates": [
                {
                    "id": id_,
                    "log_prob": float(own[id_]),
                    "scores": [float(scores[row, at]) for scores in given],
                    "share": float(at == taken) if shares is None else float(shares[at]),
                    "chosen": at == taken,
                }
                for at, id_ in zip(places, ids, strict=True)
            ],
        })  # fmt: skip


def tell_branches(observer: Observer, seats: Sequence[Seat], tokens: Tensor, scores: Tensor, chosen: Tensor) -> None:
    """One event a row: the branches [rows, k, D] of a block with their scores [rows, k] and the one that was kept."""
    for seat, row, values, taken in zip(seats, tokens.tolist(), scores.tolist(), chosen.tolist(), strict=True):
        if not observer.hears(seat):
            continue
        branches = [
            {"ids": [token for token in ids if token >= 0], "score": value, "chosen": b == taken}
            for b, (ids, value) in enumerate(zip(row, values, strict=True))
        ]
        observer.tell({"prompt": seat.prompt, "sample": seat.number, "step": len(seat.ids), "branches": branches})


def tell_segment(
    observer: Observer, seat: Seat, start: int, ids: Sequence[int], reward: float, threshold: float, verdict: Verdict
) -> None:
    """A segment that was tried, or after all tries the one that was taken."""
    if not observer.hears(seat):
        return
    segment = {"ids": list(ids), "reward": reward, "threshold": threshold, "verdict": verdict}
    observer.tell({"prompt": seat.prompt, "sample": seat.number, "step": start, "segment": segment})


def tell_draws(
    observer: Observer,
    prompt: int,
    sample: int,
    texts: Sequence[str],
    numbers: Sequence[int],
    rewards: Sequence[float],
    taken: int,
) -> None:
    """The draws, by their numbers, among which a sample was chosen by reward."""
    draws = [
        {"draw": number, "text": text, "reward": reward, "chosen": number == taken}
        for number, text, reward in zip(numbers, texts, rewards, strict=True)
    ]
    observer.tell({"prompt": prompt, "sample": taken, "of": sample, "draws": draws})


def in_words(event: Mapping[str, Any], decode: Callable[[list[int]], str]) -> dict[str, Any]:
    """An event with texts beside its tokens, without saying to which answer it belongs."""
    step = {key: value for key, value in event.items() if key not in ("prompt", "sample")}
    if "candidates" in step:
        step["candidates"] = [{"token": decode([c["id"]])} | c for c in step["candidates"]]
    if "branches" in step:
        step["branches"] = [{"text": decode(b["ids"])} | b for b in step["branches"]]
    if "segment" in step:
        step["segment"] = {"text": decode(step["segment"]["ids"])} | step["segment"]
    return step
