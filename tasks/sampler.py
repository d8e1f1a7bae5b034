"""Many samples of each prompt from one prefill of that prompt, at full batches all the way.

The random numbers of a sample come from (seed, its prompt's key, its number) alone: neither the batch nor the order of the
prompts changes what is drawn, but for how the model's arithmetic rounds in batches of other shapes.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Sequence
from typing import Any

import torch

from registry.methods.draws import check_rule
from tasks.batch import Batch, Companion, Request, Sample, Stepping, answers
from tasks.reader import Positions, Reader, next_token_logits
from tasks.slot_cache import check_room, evaluating
from tasks.tokens import Tokens


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
    chosen: int | None = None,
    temperature: float = 1.0,
    top_k: int = 0,
    top_p: float = 1.0,
    rows: int = 64,
    guidance: Companion | None = None,
    on_progress: Callable[[int, int], None] | None = None,
    count: Positions | None = None,
    on_rows: Callable[[Sequence[int]], None] | None = None,
) -> list[list[Sample]]:
    """`result[i][j]` is sample j of prompt i, drawn with the numbers of (seed, keys[i], j). Where `chosen` of them are going to
    be chosen from all, it has those of branch j // chosen of sample j % chosen, so that they depend on no number asked for.

    At most `rows` samples are decoded at a time (where each grows several branches, so many branches, and those of one
    sample at least); `guidance` changes what is drawn; `on_progress` hears (ended, all) samples; `count`, if given, is
    added to; `on_rows` hears before each forward pass of `model` which prompt is in each of its rows.
    """
    check_rule(temperature, top_k, top_p)
    check_request(model, prompts, keys, samples, max_new_tokens, rows)
    if temperature == 0 and samples != 1:
        raise ValueError(
            f"samples is {samples} at temperature 0: greedy decoding has one outcome; "
            "ask for 1 sample or raise the temperature"
        )
    policy = policy_reader(model, prompts, count, on_rows)
    slots = max(rows // (guidance.branches if guidance else 1), 1)
    requests = [
        Request(prompt, key, seed, samples, max_new_tokens, chosen or samples) for prompt, key in enumerate(keys)
    ]
    with evaluating(model):
        batch = Batch(policy, guidance, min(slots, len(prompts) * samples), max_new_tokens, frozenset(eos_ids))
        return answers(stepping(batch, temperature, top_k, top_p), requests, on_progress)


def stepping(batch: Batch, temperature: float, top_k: int, top_p: float) -> Stepping:
    """What decodes a batch: its companion's way, or the policy alone."""
    rule = {"temperature": temperature, "top_k": top_k, "top_p": top_p}
    return batch.companion.stepping(batch, rule) if batch.companion is not None else Tokens(batch, None, rule)


def policy_reader(
    model: Any,
    prompts: Sequence[Sequence[int]],
    count: Positions | None,
    on_rows: Callable[[Sequence[int]], None] | None = None,
) -> Reader:
    """The language model that is decoded, with `count`, if given, to be added to."""
    device = torch.device(model.get_input_embeddings().weight.device)
    return Reader(next_token_logits(model), list(prompts), device, on_rows, Positions() if count is None else count)


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
