"""Our side of the decoding benchmark: each rule as one call of the engine, with what the engine itself counted.

The reward model is read as `tasks.guides` reads one, but that its head is the classifier's own, in the model's type.
Nothing ends an answer, so every answer has all its tokens.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from registry.methods.draws import uniforms
from tasks.attention import grouped_heads
from tasks.batch import Sample
from tasks.blocks import Blockwise, PrefixBlocks
from tasks.cards import Judge, Segments
from tasks.guidance import Guidance, NextTokens, Prefixes
from tasks.reader import Output, Positions, Reader, next_token_logits
from tasks.rollouts import Rollouts
from tasks.sampler import sample
from tasks.trace import Observer

Prompts = Sequence[Sequence[int]]
SEED = 0


@dataclass
class Run:
    """What came of a call."""

    ids: list[list[list[int]]]
    """[prompt][sample]"""
    policy: Positions
    guides: list[Positions] = field(default_factory=list)
    held: int = 0
    """Bytes of keys and values in the caches of the guides at the end."""


@dataclass(frozen=True)
class Tried:
    """The segments that CARDS sampled, and the tokens in all of them."""

    segments: int
    rejected: int
    sampled: int


def args(policy: Any, judge: Any, prompts: Prompts, *, k: int, strength: float, new: int) -> Run:
    guide = Prefixes(_reads(judge, prompts))
    return _guided(policy, prompts, Guidance([(guide, strength)], candidates=k), new)


def genarm(policy: Any, guide: Any, prompts: Prompts, *, strength: float, new: int) -> Run:
    return _guided(policy, prompts, Guidance([(NextTokens(_speaks(guide, prompts)), strength)]), new)


def transfer_q(
    policy: Any, baseline: Any, judge: Any, prompts: Prompts, *, k: int, look_ahead: int, strength: float, new: int
) -> Run:
    """Without an end behind what the baseline makes of a candidate: the reward model reads just that."""
    scorer = PrefixBlocks(_reads(judge, prompts), lambda rewards, tokens: rewards)
    guide = Rollouts(_speaks(baseline, prompts), scorer, look_ahead)
    return _guided(policy, prompts, Guidance([(guide, strength)], candidates=k), new)


def best_of(policy: Any, prompts: Prompts, *, n: int, new: int) -> Run:
    count = Positions()
    found = sample(policy, prompts, samples=n, count=count, **_asked(prompts, new, rows=len(prompts) * n))
    return Run(_ids(found), count)


def blocks(policy: Any, judge: Any, prompts: Prompts, *, branches: int, block: int, new: int) -> Run:
    count, reader = Positions(), _reads(judge, prompts)
    way = Blockwise([(PrefixBlocks(reader, lambda rewards, tokens: rewards), 1.0)], block, branches)
    asked = _asked(prompts, new, rows=len(prompts) * branches)
    found = sample(policy, prompts, guidance=way, samples=1, count=count, **asked)
    return Run(_ids(found), count, [reader.count])


def cards(policy: Any, judge: Any, prompts: Prompts, *, rule: Segments, new: int) -> tuple[Run, Tried]:
    count, reader = Positions(), _reads(judge, prompts)
    told: list[Mapping[str, Any]] = []
    judging = Judge(reader, rule, observer=Observer(told.append))
    asked = _asked(prompts, new, rows=len(prompts))
    found = sample(policy, prompts, guidance=judging, samples=1, count=count, **asked)
    segments = [s for event in told if (s := event["segment"])["verdict"] != "best of all tries"]
    rejected, sampled = sum(s["verdict"] == "refused" for s in segments), sum(len(s["ids"]) for s in segments)
    return Run(_ids(found), count, [reader.count]), Tried(len(segments), rejected, sampled)


def numbers_of_cards(prompt: int) -> dict[str, Iterator[float]]:
    """What the engine draws with, for the textbook to draw with: of tokens, and of what accepts segments."""
    return {
        "drawing": iter(uniforms(SEED, str(prompt), 0, 1 << 14).tolist()),
        "accepting": iter(uniforms(SEED, f"{prompt}/accepting", 0, 1 << 14).tolist()),
    }


def _guided(policy: Any, prompts: Prompts, guidance: Guidance, new: int) -> Run:
    count = Positions()
    asked = _asked(prompts, new, rows=len(prompts))
    found = sample(policy, prompts, samples=1, temperature=0.0, guidance=guidance, count=count, **asked)
    readers = guidance.readers
    held = sum(one.nbytes for reader in readers for one in (*reader.cache.keys, *reader.cache.values))
    return Run(_ids(found), count, [reader.count for reader in readers], held)


def _asked(prompts: Prompts, new: int, rows: int) -> dict[str, Any]:
    keys = [str(number) for number in range(len(prompts))]
    return {"keys": keys, "seed": SEED, "max_new_tokens": new, "eos_ids": [], "rows": rows}


def _ids(found: list[list[Sample]]) -> list[list[list[int]]]:
    return [[list(one.ids) for one in row] for row in found]


def _speaks(model: Any, prompts: Prompts) -> Reader:
    return Reader(next_token_logits(model), list(prompts), torch.device(model.device))


def _reads(judge: Any, prompts: Prompts) -> Reader:
    body, head = judge.base_model, judge.score

    def output(keep: Tensor | None = None, **inputs: Any) -> Tensor:
        with grouped_heads(judge):
            states = body(**inputs).last_hidden_state
        found: Tensor = head(states if keep is None else states[:, keep])
        return found[..., 0].float()

    made: Output = output
    return Reader(made, list(prompts), torch.device(judge.device))
