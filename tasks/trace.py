"""What a decoding rule looked at before each choice: candidates with their scores, branches of a block, segments tried.

An event is a plain mapping with the place of its prompt and the number of its sample, so that it can be printed, or kept as
a line of JSON. Tokens are numbers here; who has the tokenizer writes them out.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any, Literal

import torch
from torch import Tensor

from tasks.batch import Seat

Observer = Callable[[Mapping[str, Any]], None]
Verdict = Literal["accepted", "refused", "best of all tries"]

SHOWN = 10
"""Of the whole vocabulary so many of the highest scores are told."""


def tell_tokens(
    tell: Observer,
    seats: Sequence[Seat],
    logits: Tensor,
    candidates: Tensor | None,
    scored: Sequence[tuple[Tensor, float]],
    whole: Tensor,
    place: Tensor,
    temperature: float,
) -> None:
    """One event a row: the candidates of highest guided score and the one that was taken, each with the policy's own
    log-probability, what each guide gives it, and its share of the guided distribution before top-k and top-p."""
    own = logits.float().log_softmax(-1)
    shares = (whole / temperature).softmax(-1) if temperature > 0 else torch.zeros_like(whole)
    best = whole.topk(min(SHOWN, whole.shape[1])).indices
    for row, seat in enumerate(seats):
        taken = int(place[row])
        places = best[row].tolist()
        places += [taken] if taken not in places else []
        ids = places if candidates is None else candidates[row, places].tolist()
        tell({
            "prompt": seat.prompt,
            "sample": seat.number,
            "step": len(seat.ids),
            "candidates": [
                {
                    "id": id_,
                    "log_prob": float(own[row, id_]),
                    "scores": [float(scores[row, at]) for scores, _ in scored],
                    "share": float(shares[row, at]) if temperature > 0 else float(at == taken),
                    "chosen": at == taken,
                }
                for at, id_ in zip(places, ids, strict=True)
            ],
        })  # fmt: skip


def tell_branches(tell: Observer, seats: Sequence[Seat], tokens: Tensor, scores: Tensor, chosen: Tensor) -> None:
    """One event a row: the branches [rows, k, D] of a block with their scores [rows, k] and the one that was kept."""
    for seat, row, values, taken in zip(seats, tokens.tolist(), scores.tolist(), chosen.tolist(), strict=True):
        branches = [
            {"ids": [token for token in ids if token >= 0], "score": value, "chosen": b == taken}
            for b, (ids, value) in enumerate(zip(row, values, strict=True))
        ]
        tell({"prompt": seat.prompt, "sample": seat.number, "step": len(seat.ids), "branches": branches})


def tell_segment(
    tell: Observer, seat: Seat, start: int, ids: Sequence[int], reward: float, threshold: float, verdict: Verdict
) -> None:
    """A segment that was tried, or after all tries the one that was taken."""
    segment = {"ids": list(ids), "reward": reward, "threshold": threshold, "verdict": verdict}
    tell({"prompt": seat.prompt, "sample": seat.number, "step": start, "segment": segment})


def tell_draws(
    tell: Observer,
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
    tell({"prompt": prompt, "sample": taken, "of": sample, "draws": draws})
