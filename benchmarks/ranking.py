"""RRHF steps a second with the prompt shared, against the padded textbook loss.

Six candidates to a prompt of 128 tokens, answers of 16 to 64 tokens, LoRA on every linear layer of the demo model. The
textbook pads all candidates behind copies of the prompt and takes the log-softmax of all logits. Losses and gradients
of both are compared before anything is timed, in fp32; each repeat runs both sides, alternately. The memory of the loss
is that of a model that is nearly nothing but a vocabulary, of 49,152 tokens and of four times as many.
"""

from __future__ import annotations

import time
from collections.abc import Iterator
from itertools import accumulate
from pathlib import Path
from typing import Any

import torch
from peft import LoraConfig, get_peft_model
from torch import Tensor
from torch.profiler import ProfilerActivity, profile
from transformers import AutoModelForCausalLM, LlamaConfig, LlamaForCausalLM

from benchmarks.figures import Figure, against
from benchmarks.sampler import demo_model
from registry.log_probs import answer_log_probs, with_log_probs
from registry.methods import rrhf
from registry.methods.shared_prompt import lengths, pack

CANDIDATES, PROMPT, LONGEST = 6, 128, 64
Query = tuple[list[int], list[list[int]], list[float]]


def queries(count: int, vocabulary: int) -> list[Query]:
    """Random tokens; what they say does not matter to the time."""
    generator = torch.Generator().manual_seed(0)

    def tokens(size: int) -> list[int]:
        found: list[int] = torch.randint(5, vocabulary, (size,), generator=generator).tolist()
        return found

    sizes = [16, 24, 32, 48, 56, LONGEST]
    rewards = [0.3, 0.1, 0.9, 0.5, 0.2, 0.7]
    return [(tokens(PROMPT), [tokens(size) for size in sizes], rewards) for _ in range(count)]


def shared(model: Any, query: Query) -> Tensor:
    """Our loss of one query."""
    prompt, answers, rewards = query
    rows = [(prompt, answers)]
    log_probs = answer_log_probs(model, pack(rows), CANDIDATES)
    mask = torch.ones(1, CANDIDATES, dtype=torch.bool)
    return rrhf.loss(log_probs, lengths(rows), torch.tensor([rewards]), mask, 1.0, "sum")[0]


def textbook(model: Any, query: Query) -> Tensor:
    """The paper's loss of one query, written out as its code is: padded rows, whole logits."""
    prompt, answers, rewards = query
    width = PROMPT + max(map(len, answers))
    ids = torch.tensor([prompt + a + [0] * (width - PROMPT - len(a)) for a in answers])
    answer_mask = torch.tensor([[0] * PROMPT + [1] * len(a) + [0] * (width - PROMPT - len(a)) for a in answers])
    seen = (torch.arange(width) < PROMPT + torch.tensor([[len(a)] for a in answers])).long()
    logits = model(input_ids=ids, attention_mask=seen, use_cache=False).logits.float()
    log_probs = logits[:, :-1].log_softmax(-1).gather(2, ids[:, 1:, None])[..., 0] * answer_mask[:, 1:]
    sums = log_probs.sum(1)
    scores = sums / answer_mask.sum(1)
    ranks = torch.tensor(rewards)
    worse = ranks[:, None] < ranks[None, :]
    ranking = ((scores[:, None] - scores[None, :]).clamp(min=0) * worse).sum()
    loss: Tensor = ranking - sums[int(ranks.argmax())]
    return loss


def compared(model: Any, query: Query) -> tuple[float, float]:
    """How far loss and gradients are apart, relative to their sizes."""
    found = []
    for loss in (shared, textbook):
        model.zero_grad()
        value = loss(model, query)
        value.backward()
        grads = torch.cat([p.grad.flatten() for p in model.parameters() if p.requires_grad])
        found.append((float(value), grads))
    (ours, our_grads), (theirs, their_grads) = found
    return abs(ours - theirs) / abs(theirs), float((our_grads - their_grads).norm() / their_grads.norm())


def adapted(causal: Any) -> Any:
    """The model with adapters that are not zero, so that every gradient is there."""
    torch.manual_seed(0)
    model = with_log_probs(causal)
    model = get_peft_model(model, LoraConfig(r=16, lora_alpha=32, target_modules="all-linear", task_type="CAUSAL_LM"))
    for name, parameter in model.named_parameters():
        if "lora_B" in name:
            torch.nn.init.normal_(parameter, std=0.01)
    return model.train()


def held(vocabulary: int, loss: Any) -> float:
    """GB that a loss and its gradients hold at most beside the weights."""
    config = LlamaConfig(
        vocab_size=vocabulary, hidden_size=64, intermediate_size=128, num_hidden_layers=1, num_attention_heads=4
    )
    model = adapted(LlamaForCausalLM(config))
    (query,) = queries(1, vocabulary)
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as found:
        loss(model, query).backward()
    assert found.profiler is not None and found.profiler.kineto_results is not None
    events = [event for event in found.profiler.kineto_results.events() if event.name() == "[memory]"]
    events.sort(key=lambda event: event.start_ns())
    most: int = max(accumulate(event.nbytes() for event in events))
    return most / 1e9


def measure(folder: Path, repeats: int = 5, steps: int = 3) -> Iterator[Figure]:
    """Both sides in turn, with the optimizer's step."""
    source = demo_model(folder)
    exact = adapted(AutoModelForCausalLM.from_pretrained(source, dtype=torch.float32))
    some = queries(steps, exact.config.vocab_size)
    loss_apart, gradient_apart = compared(exact, some[0])
    if loss_apart > 1e-5 or gradient_apart > 1e-4:
        raise AssertionError(f"the losses differ by {loss_apart:.2g} and their gradients by {gradient_apart:.2g}")
    del exact
    model = adapted(AutoModelForCausalLM.from_pretrained(source, dtype=torch.bfloat16))
    optimizer = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], lr=1e-6)

    def rate(loss: Any) -> float:
        began = time.perf_counter()
        for query in some:
            with torch.autocast("cpu", torch.bfloat16):
                value = loss(model, query)
            value.backward()
            optimizer.step()
            optimizer.zero_grad()
        return len(some) / (time.perf_counter() - began)

    rate(shared), rate(textbook)
    pairs = [(rate(shared), rate(textbook)) for _ in range(repeats)]
    name = f"RRHF step, {CANDIDATES} candidates, shared prompt, against padded rows (loss apart {loss_apart:.1g})"
    yield against(name, pairs, "steps/s", 2.0, higher_is_better=True)

    small, large = 49_152, 4 * 49_152
    textbooks = " and ".join(f"{held(size, textbook):.2g}" for size in (small, large))
    name = (
        f"memory of its loss at {large:,} tokens of vocabulary, against {small:,} (the textbook holds {textbooks} GB)"
    )
    yield against(name, [(held(large, shared), held(small, shared))], "GB", 1.01)
