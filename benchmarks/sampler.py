"""Tokens a second of the sampler against `generate`, on 64 chat prompts of ragged length.

Both draw 4 samples a prompt of at most 64 new tokens, at temperature 1 from the whole vocabulary,
with the same model, dtype and threads in one process. `generate` is called once a prompt with
`num_return_sequences`. Only useful tokens count: up to and with the end-of-sequence token. Each
repeat runs the baseline's first half, ours, and the baseline's second half, so that a machine that
speeds up or slows down meanwhile weighs on both.
"""

from __future__ import annotations

import argparse
import json
import statistics
import time
from typing import Any

import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from tasks.sampler import sample

NEW_TOKENS = 64
SAMPLES = 4
TARGET = 3.0
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
    """64 prompts of 1 to 9 sentences, in the model's chat format if it has one."""
    texts = [
        " ".join([f"My question is about {topic}.", *BACKGROUND[:number], task])
        for topic in TOPICS
        for number, task in enumerate(TASKS)
    ]
    if tokenizer.chat_template is None:
        return [tokenizer(text)["input_ids"] for text in texts]
    turns = [[{"role": "user", "content": text}] for text in texts]
    settings = {"add_generation_prompt": True, "return_dict": False}
    return [tokenizer.apply_chat_template(turn, **settings) for turn in turns]


def run_ours(model: Any, ids: list[list[int]], eos_id: int, seed: int, rows: int) -> int:
    drawn = sample(
        model,
        ids,
        keys=[str(number) for number in range(len(ids))],
        samples=SAMPLES,
        seed=seed,
        max_new_tokens=NEW_TOKENS,
        eos_ids=[eos_id],
        rows=rows,
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


def measure(model_dir: str, repeats: int = 3, rows: int = 64) -> dict[str, Any]:
    """Ours and the baseline alternately; the figures are medians over the repeats."""
    tokenizer = AutoTokenizer.from_pretrained(model_dir)
    model = AutoModelForCausalLM.from_pretrained(model_dir, dtype="auto").eval()
    eos_id = tokenizer.eos_token_id
    ids = prompts(tokenizer)
    halves = ids[::2], ids[1::2]
    run_ours(model, ids[:4], eos_id, 0, rows)
    run_generate(model, ids[:1], eos_id)
    pairs = []
    for repeat in range(repeats):
        torch.manual_seed(repeat)
        before = time.perf_counter()
        theirs = run_generate(model, halves[0], eos_id)
        between = time.perf_counter()
        tokens = run_ours(model, ids, eos_id, repeat, rows)
        after = time.perf_counter()
        theirs += run_generate(model, halves[1], eos_id)
        end = time.perf_counter()
        pairs.append((tokens / (after - between), theirs / (between - before + end - after)))
    ratios = [ours / baseline for ours, baseline in pairs]
    ratio = statistics.median(ratios)
    return {
        "name": f"sampler, {len(ids)} prompts x {SAMPLES} samples, {rows} rows",
        "ours": statistics.median(ours for ours, _ in pairs),
        "baseline": statistics.median(baseline for _, baseline in pairs),
        "unit": "tokens/s",
        "ratio": ratio,
        "target": TARGET,
        "higher_is_better": True,
        "reached": ratio >= TARGET,
        "spread": (min(ratios), max(ratios)),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("model_dir", help="folder of a causal language model and its tokenizer")
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--rows", type=int, default=64)
    parser.add_argument("--threads", type=int, default=2)
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    result = measure(arguments.model_dir, arguments.repeats, arguments.rows)
    print(json.dumps(result, indent=2))


if __name__ == "__main__":
    main()
