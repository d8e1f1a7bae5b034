"""What the decoding rules are measured against, on nothing but transformers: their published forms, and floors.

The published forms are written out from the papers' algorithms, each as its authors run it: ARGS (arXiv 2402.01694) prompt
by prompt with k copies of the prompt in the reward model's cache, CARDS (arXiv 2406.16306) with the whole text read anew for
every token, GenARM (arXiv 2410.08193) as a loop of two models. A floor is the forward passes alone, with what they have to
read and nothing drawn. Nothing ends an answer. Prompts that are read together have one length.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from transformers import DynamicCache


@dataclass(frozen=True)
class Chosen:
    """The tokens [rows, new], and by how much the score of each was above the second best."""

    ids: list[list[int]]
    margins: list[list[float]]
    held: int = 0
    """Bytes of keys and values in the reward model's cache at the end."""


def without_padding(judge: Any) -> Any:
    """A classifier that takes every token of a row for text. Without an id of padding it refuses rows side by side, and a
    padding token that the policy draws would be scored as if it were not there."""
    judge.config.pad_token_id = -1
    return judge


@torch.inference_mode()
def args(policy: Any, judge: Any, prompt: Sequence[int], *, k: int, strength: float, new: int) -> Chosen:
    """Greedy ARGS of one prompt: the reward model reads each of the k most probable tokens in a row of its own, behind a
    copy of all that came before; then all k rows become copies of the winner's."""
    start = torch.tensor([prompt], device=policy.device)
    own, of_judge = DynamicCache(), DynamicCache()
    judge(input_ids=start.expand(k, -1), past_key_values=of_judge, use_cache=True)
    logits = policy(input_ids=start, past_key_values=own, use_cache=True, logits_to_keep=1).logits[0, -1]
    ids, margins = [], []
    for step in range(new):
        values, tokens = logits.float().topk(k)
        rewards = judge(input_ids=tokens[:, None], past_key_values=of_judge, use_cache=True).logits[:, 0]
        best, margin = _best((values + strength * rewards.float())[None])
        of_judge.reorder_cache(best.expand(k))
        ids.append(tokens[best])
        margins.append(margin)
        if step + 1 < new:
            logits = policy(input_ids=ids[-1][None], past_key_values=own, use_cache=True).logits[0, -1]
    return Chosen([torch.cat(ids).tolist()], [torch.cat(margins).tolist()], held_by(of_judge))


@torch.inference_mode()
def args_floor(policy: Any, judge: Any, prompts: Sequence[Sequence[int]], *, k: int, new: int) -> float:
    """The passes of ARGS on a batch of prompts with each prompt held once: one token a row of the policy and k tokens a row
    of the reward model a step, of which one stays. Returns a number that had to wait for all of them."""
    start = torch.tensor(prompts, device=policy.device)
    own, of_judge = DynamicCache(), DynamicCache()
    judge(input_ids=start, past_key_values=of_judge, use_cache=True)
    policy(input_ids=start, past_key_values=own, use_cache=True, logits_to_keep=1)
    tokens = start[:, :1].expand(-1, k)
    for step in range(new):
        found = judge(input_ids=tokens, past_key_values=of_judge, use_cache=True).logits
        of_judge.crop(1 - k)
        if step + 1 < new:
            policy(input_ids=tokens[:, :1], past_key_values=own, use_cache=True)
    return float(found.sum())


@torch.inference_mode()
def genarm(policy: Any, guide: Any, prompts: Sequence[Sequence[int]], *, strength: float, new: int) -> Chosen:
    """Greedy GenARM of a batch: a step is one cached pass of each model and the best of their weighted sum."""
    tokens = torch.tensor(prompts, device=policy.device)
    own, of_guide = DynamicCache(), DynamicCache()
    ids, margins = [], []
    for _ in range(new):
        ours = policy(input_ids=tokens, past_key_values=own, use_cache=True, logits_to_keep=1).logits[:, -1]
        its = guide(input_ids=tokens, past_key_values=of_guide, use_cache=True, logits_to_keep=1).logits[:, -1]
        best, margin = _best(ours.float() + strength * its.float())
        tokens = best[:, None]
        ids.append(best)
        margins.append(margin)
    return Chosen(torch.stack(ids, 1).tolist(), torch.stack(margins, 1).tolist())


@dataclass(frozen=True)
class Accepted:
    """The answer of CARDS, and how many tokens and segments were sampled for it."""

    ids: list[int]
    sampled: int
    segments: int
    rejected: int


@torch.inference_mode()
def cards(
    policy: Any,
    judge: Any,
    prompt: Sequence[int],
    *,
    new: int,
    drawing: Iterator[float],
    accepting: Iterator[float],
    target: float,
    alpha: float,
    beta: float,
    entropy: float,
    shortest: int,
    longest: int,
    tries: int,
) -> Accepted:
    """CARDS of one prompt with the numbers of `drawing` and `accepting`; the rest is as in `tasks.cards.Segments`. Neither
    model keeps anything between passes, but for the logits of a segment's beginning, which every try starts from."""

    def after(text: Sequence[int]) -> Tensor:
        ids = torch.tensor([text], device=policy.device)
        found: Tensor = policy(input_ids=ids, use_cache=False, logits_to_keep=1).logits[0, -1].float().log_softmax(-1)
        return found

    def reward(text: Sequence[int]) -> float:
        return float(judge(input_ids=torch.tensor([text], device=judge.device), use_cache=False).logits[0, 0])

    start = (1 - alpha) * reward(prompt) + alpha * target
    text, beginning = list(prompt), after(prompt)
    sampled = segments = rejected = 0
    while len(text) < len(prompt) + new:
        tried: list[tuple[float, list[int], Tensor]] = []
        while True:
            longer, logs = list(text), beginning
            while True:
                longer.append(_drawn(logs, next(drawing)))
                logs, size = after(longer), len(longer) - len(text)
                uncertain = size >= shortest and float(-(logs.exp() * logs).sum()) >= entropy
                if uncertain or size == longest or len(longer) == len(prompt) + new:
                    break
            sampled, segments = sampled + size, segments + 1
            worth = reward(longer)
            tried.append((worth, longer, logs))
            bar = min(target, start + (len(longer) - len(prompt)) / new * (target - start))
            if next(accepting) < math.exp(min(0.0, (worth - bar) / beta)):
                break
            rejected += 1
            if len(tried) == tries:
                tried.append(max(tried, key=lambda one: one[0]))
                break
        _, text, beginning = tried[-1]
    return Accepted(text[len(prompt) :], sampled, segments, rejected)


def held_by(cache: DynamicCache) -> int:
    """Bytes of its keys and values."""
    layers: list[Any] = cache.layers
    return sum(held.nbytes for layer in layers for held in (layer.keys, layer.values))


def _drawn(log_probs: Tensor, u: float) -> int:
    """The first token at which the cumulative probability is above `u` of the whole."""
    edges = log_probs.exp().double().cumsum(0)
    return int(torch.searchsorted(edges, u * edges[-1], right=True))


def _best(scores: Tensor) -> tuple[Tensor, Tensor]:
    """Where each row is highest, and how far above the second highest; infinitely where there is no second."""
    found = torch.nn.functional.pad(scores, (0, 1), value=-math.inf).topk(2, dim=-1)
    return found.indices[:, 0], found.values[:, 0] - found.values[:, 1]
