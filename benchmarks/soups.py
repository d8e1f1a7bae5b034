"""A grid of eleven soups sampled at once, against one policy with as many answers; and merging against a plain lerp.

Two experts with LoRA of rank 16 on every linear layer of the demo model, 24 prompts, two answers to each from each of the
eleven mixtures; the policy gives 22 answers to each prompt. Only tokens count, so that longer answers cost nobody.
"""

from __future__ import annotations

import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from benchmarks.figures import Figure, against, bounded
from benchmarks.sampler import NEW_TOKENS, demo_model, prompts
from registry.methods.soup import Factor, average
from tasks.reader import Positions
from tasks.row_lora import install
from tasks.sampler import sample

POINTS, SAMPLES, ROWS = 11, 2, 64


def experts(model: Any, count: int = 2, rank: int = 16) -> list[dict[str, list[Factor]]]:
    """Random updates of a size that training leaves."""
    generator = torch.Generator().manual_seed(0)
    layers = {name: m for name, m in model.named_modules() if type(m) is torch.nn.Linear and name != "lm_head"}
    return [
        {
            name: [
                Factor(
                    torch.randn(rank, layer.in_features, generator=generator) * layer.in_features**-0.5,
                    torch.randn(layer.out_features, rank, generator=generator) * 0.002,
                    2.0,
                )
            ]
            for name, layer in layers.items()
        }
        for _ in range(count)
    ]


def measure(folder: Path, repeats: int = 3) -> Iterator[Figure]:
    """Ours and the baseline alternately."""
    source = demo_model(folder)
    tokenizer = AutoTokenizer.from_pretrained(source)
    model = AutoModelForCausalLM.from_pretrained(source, dtype="auto").eval()
    ids = prompts(tokenizer)[::3][:24]
    keys = [str(number) for number in range(len(ids))]
    updates = experts(model)
    table = torch.tensor([[1 - i / (POINTS - 1), i / (POINTS - 1)] for i in range(POINTS)])
    settings: dict[str, Any] = {
        "seed": 1, "max_new_tokens": NEW_TOKENS, "eos_ids": [tokenizer.eos_token_id], "rows": ROWS,
    }  # fmt: skip

    def rate(drawn: list[list[Any]], began: float) -> float:
        """Seconds for a thousand tokens."""
        return 1000 * (time.perf_counter() - began) / sum(len(one.ids) for row in drawn for one in row)

    def grid() -> float:
        began = time.perf_counter()
        with install(model, updates) as weights:
            drawn = sample(
                model, ids * POINTS, keys=keys * POINTS, samples=SAMPLES,
                on_rows=lambda rows: weights.set(table[[row // len(ids) for row in rows]]), **settings,
            )  # fmt: skip
        return rate(drawn, began)

    def policy() -> float:
        began = time.perf_counter()
        return rate(sample(model, ids, keys=keys, samples=SAMPLES * POINTS, **settings), began)

    pairs = [(grid(), policy()) for _ in range(repeats)]
    yield against(f"{POINTS} soups in one batch, against one policy with as many answers", pairs, "s/1,000 tokens", 1.5)

    count = Positions()
    sample(model, ids[:8], keys=keys[:8], samples=8, count=count, **(settings | {"max_new_tokens": 4}))
    prefilled = count.prefill / sum(map(len, ids[:8]))
    yield bounded("prompt tokens prefilled for 8 samples, over those of the prompts", [prefilled], "", 1.0)

    state = {name: tensor.float() for name, tensor in model.state_dict().items()}
    other = {name: tensor + 0.01 for name, tensor in state.items()}

    def merged() -> float:
        began = time.perf_counter()
        average([state, other], [0.7, 0.3])
        return time.perf_counter() - began

    def lerped() -> float:
        began = time.perf_counter()
        for name, tensor in state.items():
            torch.lerp(tensor, other[name], 0.3)
        return time.perf_counter() - began

    merged(), lerped()
    yield against("merging two models, against an in-memory lerp", [(merged(), lerped()) for _ in range(5)], "s", 2.0)
