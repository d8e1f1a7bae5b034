"""Tokens a second of the sampler against `generate`, on 64 chat prompts of ragged length.

Both draw 4 samples a prompt of at most 64 new tokens, at temperature 1 from the whole vocabulary,
with the same model, dtype and threads in one process. `generate` is called once a prompt with
`num_return_sequences`. Only useful tokens count: up to and with the end-of-sequence token. Each
repeat runs the baseline's first half, ours, and the baseline's second half, so that a machine that
speeds up or slows down meanwhile weighs on both.
"""

from __future__ import annotations

import os
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from benchmarks.command_line import ALIGNFLOW
from benchmarks.figures import Figure, against, seconds
from tasks.sampler import sample

NEW_TOKENS = 64
SAMPLES = 4
ROWS = 64
FETCH = """\
version: 1
name: fetch
models: {base: {source: smollm2-135m-instruct}}
data: {prompts: {source: quickstart-eval, format: prompt, rows: 1}}
stages: {one: {do: sample, from: base, prompts: prompts, samples: 1, max_new_tokens: 1}}
"""
TOPICS = (
    "a vegetable garden on a balcony",
    "the history of the printing press",
    "a birthday party for a six-year-old",
    "how vaccines train the immune system",
    "a budget for a family of four",
    "the rules of chess",
    "a three-day trip to the mountains",
    "why the sea is salty",
)
# Each prompt ends in one of these and opens with as many sentences as come before it.
TASKS = (
    "Explain it.",
    "Give three useful tips.",
    "What should a beginner know first?",
    "Write a short paragraph about it for a school newspaper.",
    "Which mistakes do people make most often, and how can they be avoided?",
    "Answer in one sentence.",
    "Tell a short story in which it plays a part.",
    "List what one needs, with a reason for each thing.",
)
BACKGROUND = (
    "I have been reading about it for a few weeks and still feel lost.",
    "My sister says that it is easy once the basics are clear, but she never has time to explain.",
    "The books in our library are old and contradict each other.",
    "Please use plain words, because English is my second language.",
    "I would like to share your answer with my class on Monday morning.",
    "Nobody in my family has ever done anything like this, so assume that we know nothing.",
    "Last year we tried and gave up after two days, which was a pity.",
)


def prompts(tokenizer: Any) -> list[list[int]]:
    """64 prompts of 1 to 9 sentences in the model's chat format."""
    texts = [
        " ".join([f"My question is about {topic}.", *BACKGROUND[:number], task])
        for topic in TOPICS
        for number, task in enumerate(TASKS)
    ]
    turns = [[{"role": "user", "content": text}] for text in texts]
    settings = {"add_generation_prompt": True, "return_dict": False}
    return [tokenizer.apply_chat_template(turn, **settings) for turn in turns]


def run_ours(model: Any, ids: list[list[int]], eos_id: int, seed: int) -> int:
    drawn = sample(
        model,
        ids,
        keys=[str(number) for number in range(len(ids))],
        samples=SAMPLES,
        seed=seed,
        max_new_tokens=NEW_TOKENS,
        eos_ids=[eos_id],
        rows=ROWS,
    )
    return sum(len(one.ids) for group in drawn for one in group)


def run_generate(model: Any, ids: list[list[int]], eos_id: int) -> int:
    useful = 0
    for prompt in ids:
        start = torch.tensor([prompt], device=model.device)
        out = model.generate(
            input_ids=start,
            attention_mask=torch.ones_like(start),
            num_return_sequences=SAMPLES,
            do_sample=True,
            temperature=1.0,
            top_k=0,
            top_p=1.0,
            max_new_tokens=NEW_TOKENS,
            eos_token_id=eos_id,
            pad_token_id=eos_id,
        )
        for row in out[:, len(prompt) :].tolist():
            useful += row.index(eos_id) + 1 if eos_id in row else len(row)
    return useful


def demo_model(folder: Path) -> Path:
    """The demo model's folder, fetched by a study of one token."""
    home = folder / "sampler"
    (folder / "fetch.yaml").write_text(FETCH, encoding="utf-8")
    seconds([ALIGNFLOW, "run", "fetch.yaml"], os.environ | {"ALIGNFLOW_HOME": str(home)}, folder)
    (found,) = (home / "store" / "model").iterdir()
    return found


def measure(folder: Path, repeats: int = 3) -> Iterator[Figure]:
    """Ours and the baseline alternately."""
    model_folder = demo_model(folder)
    tokenizer = AutoTokenizer.from_pretrained(model_folder)
    model = AutoModelForCausalLM.from_pretrained(model_folder, dtype="auto").eval()
    eos_id = tokenizer.eos_token_id
    ids = prompts(tokenizer)
    halves = ids[::2], ids[1::2]
    run_ours(model, ids[:4], eos_id, 0)
    run_generate(model, ids[:1], eos_id)
    pairs = []
    for repeat in range(repeats):
        torch.manual_seed(repeat)
        before = time.perf_counter()
        theirs = run_generate(model, halves[0], eos_id)
        between = time.perf_counter()
        tokens = run_ours(model, ids, eos_id, repeat)
        after = time.perf_counter()
        theirs += run_generate(model, halves[1], eos_id)
        end = time.perf_counter()
        pairs.append((tokens / (after - between), theirs / (between - before + end - after)))
    name = f"sampler, {len(ids)} prompts x {SAMPLES} samples, against `generate` per prompt"
    yield against(name, pairs, "tokens/s", 3.0, higher_is_better=True)
