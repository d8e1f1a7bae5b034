"""A small model with its data, and the losses of training on candidates written out by hand: with a padded copy of the
prompt before every answer."""

from __future__ import annotations

import itertools
import json
import math
import random
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import stages
import tiny
import torch
from transformers import AutoModelForCausalLM

from registry.language_models import load_language_model
from registry.rows import Prompt
from tasks.view import View

LORA = "lora: {rank: 4, alpha: 8}"
STILL = "learning_rate: 1e-9, batch_size: 16"
PAIRS = [
    {
        "prompt": f"Number {i}" + " please" * (i % 4),
        "chosen": "ab" * (i % 3 + 1) + "!",
        "rejected": f"cd? {i}" * (i % 2 + 1),
    }
    for i in range(11)
]
LONG = {"prompt": "Why " + "p" * 26, "chosen": "c" * 20, "rejected": "r"}  # 30 + 3 and 21 tokens
SHORT = {"prompt": "p", "chosen": "c", "rejected": "rr"}  # 4 and 3
REWARDS = """\
def points(prompts, responses):
    return [sum(r.encode()) % 97 / 7 for r in responses]
def letters(prompts, responses):
    return [float(sum(map(str.isalpha, r))) for r in responses]
def large(prompts, responses):
    return [2.0**24 + ("?" in r) for r in responses]
"""
HEAD = """\
models: {{base: {{source: {model}, precision: {precision}}}}}
data:
  pairs: {{source: ./{pairs}.jsonl, format: preference, max_dropped: 50%}}
  test: {{source: ./{test}.jsonl, format: preference}}
  prompts: {{source: ./pairs.jsonl, format: prompt}}
rewards:
  points: {{kind: python, target: answer_points:points}}
  letters: {{kind: python, target: answer_points:letters}}
  large: {{kind: python, target: answer_points:large}}
  words: {{kind: length}}
  even: {{kind: length, per_word: 0.0}}
stages:
  rolls: {{do: sample, from: base, prompts: prompts, samples: 4, max_new_tokens: 5}}
  cal: {{do: calibrate, reward: points, reference: base, prompts: prompts, samples: 8, max_new_tokens: 5}}
"""
METHODS = {
    "rrhf": "do: rrhf, from: base, data: pairs, reward: points, max_new_tokens: 5",
    "qrpo": "do: qrpo, from: base, data: rolls, reward: cal, beta: 0.5",
    "autoregressive_reward_model": "do: autoregressive_reward_model, from: base, data: pairs, beta: 0.2",
}

Answers = list[tuple[str, bool, float]]
"""A prompt's answers: text, whether it is finished, reward."""


class Lab:
    """One small model with its data; samples of it and their calibration are made once."""

    def __init__(self, folder: Path, **changes: Any):
        self.folder = folder
        self.model = tiny.language_model(folder / "model", **changes)
        (folder / "answer_points.py").write_text(REWARDS)
        self.write("pairs", PAIRS)
        self.numbers = itertools.count()

    def write(self, name: str, pairs: Sequence[Any]) -> None:
        tiny.write_lines(self.folder / f"{name}.jsonl", list(pairs))

    def study(self, more: str = "", *, pairs: str = "pairs", test: str = "pairs", precision: str = "fp32") -> View:
        head = HEAD.format(model=self.model, pairs=pairs, test=test, precision=precision)
        view = stages.study(self.folder, head + more)
        for name in ("rolls", "cal"):
            folder = view.artifact(name).folder
            assert folder is not None
            if not folder.exists() and name in more:
                stages.build(view, name)
        return view

    def place(self) -> Path:
        """Where the next stage is built."""
        return self.folder / f"made {next(self.numbers)}"

    def train(self, fields: str, into: Path | None = None, **options: Any) -> stages.Built:
        where = {key: options.pop(key) for key in ("pairs", "test", "precision") if key in options}
        # A micro-batch is as large as the batch unless a test says otherwise.
        view = self.study(f"  made: {{{fields}}}\n", **where)
        return stages.build(view, "made", into or self.place(), **{"micro_batch": 16} | options)

    def causal(self, built: stages.Built | None = None) -> Any:
        """The model itself, or what a stage made of it."""
        if built is not None:
            return load_language_model(built.artifact).model
        return AutoModelForCausalLM.from_pretrained(self.model).eval()


def prompt_ids(prompt: str) -> list[int]:
    ids: list[int] = tiny.tokenizer()(f"<|user|>{prompt}<|end|><|assistant|>")["input_ids"]
    return ids


def answer_ids(text: str, finished: bool) -> list[int]:
    ids: list[int] = tiny.tokenizer()(text + "<|end|>" * finished)["input_ids"]
    return ids


def log_probs(causal: Any, prompt: list[int], answers: list[list[int]]) -> list[float]:
    """Of each answer behind its own copy of the prompt, padded on the right."""
    width = len(prompt) + max(map(len, answers))
    fill = [width - len(prompt) - len(a) for a in answers]
    ids = torch.tensor([[*prompt, *a, *[0] * f] for a, f in zip(answers, fill, strict=True)])
    mask = torch.tensor([[1] * (width - f) + [0] * f for f in fill])
    with torch.inference_mode():
        logs = causal(input_ids=ids, attention_mask=mask).logits.double().log_softmax(-1)
    return [
        sum(float(logs[i, len(prompt) - 1 + t, token]) for t, token in enumerate(answer))
        for i, answer in enumerate(answers)
    ]


def candidates(built: stages.Built) -> list[tuple[str, Answers]]:
    """What a stage wrote down of its candidates."""
    rows = map(json.loads, (built.folder / "samples.jsonl").read_text().splitlines())
    return [
        (row["prompt"][0]["content"], [(r["text"], r["finished"], r["reward"]) for r in row["responses"]])
        for row in rows
    ]


def texts(built: stages.Built) -> list[list[str]]:
    return [[text for text, _, _ in answers] for _, answers in candidates(built)]


def mean(values: Sequence[float]) -> float:
    return sum(values) / len(values)


def rrhf_by_hand(
    causal: Any, prompt: list[int], answers: Answers, weight: float = 1.0, sft: str = "sum"
) -> tuple[float, float]:
    """The loss of one prompt and the ranking part of it."""
    ids = [answer_ids(text, finished) for text, finished, _ in answers]
    rewards = [reward for _, _, reward in answers]
    sums = log_probs(causal, prompt, ids)
    p = [total / len(i) for total, i in zip(sums, ids, strict=True)]
    numbers = range(len(ids))
    ranking = sum(max(0.0, p[i] - p[j]) for i in numbers for j in numbers if rewards[i] < rewards[j])
    best = rewards.index(max(rewards))
    divisor = {"sum": 1, "mean": len(ids[best]), "official_code": len(prompt) + max(map(len, ids))}[sft]
    return weight * ranking - sums[best] / divisor, ranking


def rrhf_loss(causal: Any, rows: list[tuple[str, Answers]]) -> float:
    return mean([rrhf_by_hand(causal, prompt_ids(prompt), answers)[0] for prompt, answers in rows])


def reward_model_loss(causal: Any, beta: float) -> float:
    margins = []
    for pair in PAIRS:
        sides = [answer_ids(pair[side], True) for side in ("chosen", "rejected")]
        chosen, rejected = log_probs(causal, prompt_ids(pair["prompt"]), sides)
        margins.append(beta * (chosen - rejected))
    return mean([math.log1p(math.exp(-m)) for m in margins])


def qrpo_by_hand(
    lab: Lab, causal: Any, beta: float, phi: Callable[[float, int], float] = lambda u, _: u
) -> list[list[tuple[float, float]]]:
    """Of every sampled answer of every prompt its log-ratio and what that should be, (phi(u) - beta log Z) / beta. `phi`
    is told u and among how many rollouts it was found."""
    view = lab.study()
    rolls, cal = (
        [json.loads(line) for line in Path(str(view.artifact(name).folder), file).read_text().splitlines()]
        for name, file in (("rolls", "responses.jsonl"), ("cal", "calibration.jsonl"))
    )
    by_prompt = {row["prompt"]: row["rewards"] for row in cal}
    reference = lab.causal()
    found = []
    for row in rolls:
        prompt = prompt_ids(row["prompt"][0]["content"])
        said = [r for r in row["responses"] if r["text"] or r["finished"]]
        ids = [answer_ids(r["text"], r["finished"]) for r in said]
        rollouts = by_prompt[Prompt(tuple(row["prompt"])).id]
        alone = [(sum(x < own for x in rollouts) + (sum(x == own for x in rollouts) - 1) / 2) / 7 for own in rollouts]
        log_z = math.log(mean([math.exp(phi(u, 7) / beta) for u in alone]))
        here = []
        for r, new, old in zip(said, log_probs(causal, prompt, ids), log_probs(reference, prompt, ids), strict=True):
            points = sum(r["text"].encode()) % 97 / 7
            u = (sum(x < points for x in rollouts) + sum(x == points for x in rollouts) / 2) / 8
            here.append((new - old, phi(u, 8) / beta - log_z))
        found.append(here)
    return found


def qrpo_loss(rows: list[list[tuple[float, float]]], beta: float) -> float:
    """Every prompt weighs the same, whatever the number of its answers."""
    return mean([mean([(beta * (wanted - ratio)) ** 2 for ratio, wanted in row]) for row in rows])


def told_apart() -> list[dict[str, str]]:
    """Pairs of random words, of which nothing but learning tells which is the better: the one with more letters."""
    numbers = random.Random(1)

    def word(letters: int) -> str:
        return "".join(numbers.choice("abcdefgh") for _ in range(letters))

    return [{"prompt": f"Say {i}", "chosen": word(4), "rejected": word(3) + "1"} for i in range(16)]


def margins(causal: Any, pairs: list[dict[str, str]], longest: int = 512, *, by_length: bool) -> list[float]:
    """How far chosen is above rejected in each pair, by the sum or by the mean of an answer's tokens."""
    found = []
    for pair in pairs:
        ids = [answer_ids(pair[side], True) for side in ("chosen", "rejected")]
        room = longest - max(map(len, ids))
        sums = log_probs(causal, prompt_ids(pair["prompt"])[-room:], ids)
        chosen, rejected = (total / len(i) if by_length else total for total, i in zip(sums, ids, strict=True))
        found.append(chosen - rejected)
    return found
