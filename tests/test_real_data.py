"""Real rows and a real pretrained model: what is read of public data sets, what is lost and why, and one whole study."""

from __future__ import annotations

import gzip
import json
import os
import re
import subprocess
import sys
from collections.abc import Iterator
from itertools import combinations
from pathlib import Path
from typing import Any

import pytest
import tiny

from registry.artifacts import Artifact
from registry.data import read
from registry.dialogue_text import encode_prompt
from registry.language_models import load_language_model
from registry.rows import Pair, Rows
from specs.data import Data
from specs.execution import Execution
from specs.load import load
from tasks.job import Job, Log
from tasks.view import View


def raw(path: Path) -> list[dict[str, Any]]:
    with gzip.open(path, "rt", encoding="utf-8") as lines:
        return [json.loads(line) for line in lines]


def whole_pair(row: dict[str, str]) -> bool:
    """Whether a row of HH-RLHF is one dialogue, by turns, with two answers; told without the code that reads it."""
    (chosen, good), (rejected, bad) = (
        re.fullmatch(r"(.*)\n\nAssistant:(.*)", row[side], re.DOTALL).groups()  # type: ignore[union-attr]
        for side in ("chosen", "rejected")
    )
    said = re.split(r"\n\n(Human|Assistant):", chosen)
    by_turns = said[1::2] == ["Human", "Assistant"] * (len(said) // 4) + ["Human"]
    return bool(chosen == rejected and by_turns and all(text.strip() for text in [*said[2::2], good, bad]))


@pytest.mark.parametrize(
    ("name", "read_rows", "usable"),
    [
        ("helpful.train", 1552, 1539),
        ("helpful.test", 500, 497),
        ("harmless.train", 1512, 1502),
        ("harmless.test", 500, 498),
    ],
)
def test_the_usable_dialogues_are_those_that_another_count_finds(
    shared_data: Path, name: str, read_rows: int, usable: int
) -> None:
    path = shared_data / "hh-rlhf" / f"{name}.jsonl.gz"
    rows: Rows[Pair] = read(Data(source=str(path), format="hh_rlhf"))
    assert (rows.read, len(rows.rows), sum(rows.dropped.values())) == (read_rows, usable, read_rows - usable)
    theirs = [row for row in raw(path) if whole_pair(row)]
    for ours, row in zip(rows.rows, theirs, strict=True):
        for answer, text in ((ours.chosen, row["chosen"]), (ours.rejected, row["rejected"])):
            turns = "".join(f"{'Human' if m['role'] == 'user' else 'Assistant'}:{m['content']}" for m in ours.prompt)
            assert "".join(f"{turns}Assistant:{answer}".split()) == "".join(text.split())


def test_the_length_baseline_of_helpful_is_that_of_another_count(shared_data: Path, tmp_path: Path) -> None:
    from tasks.train_reward_model import train_reward_model

    folder = shared_data / "hh-rlhf"
    text = f"""\
version: 1
name: baseline
models:
  base: {{source: {shared_data}/models/stories260K, template: hh, precision: fp32}}
data:
  few: {{source: {folder}/helpful.train.jsonl.gz, format: hh_rlhf, rows: 8}}
  test: {{source: {folder}/helpful.test.jsonl.gz, format: hh_rlhf}}
stages:
  rm: {{do: reward_model, from: base, data: few, test: test, max_length: 32, too_long: truncate_left}}
"""
    artifact = view(tmp_path, text).artifact("rm")
    metrics = train_reward_model(
        Job(artifact, tmp_path, tmp_path / "scratch", Execution(threads=1), Log(lambda event: None))
    ).metrics
    assert metrics["test/pairs"] == 497
    lengths = [
        [len(row[side].rpartition("\n\nAssistant:")[2].strip()) for side in ("chosen", "rejected")]
        for row in raw(folder / "helpful.test.jsonl.gz")
        if whole_pair(row)
    ]
    wins, ties = sum(c > r for c, r in lengths), sum(c == r for c, r in lengths)
    assert metrics["test/length_baseline"] == pytest.approx((wins + ties / 2) / 497, abs=1e-12)
    # The published figure of the file, 0.596, is of all its rows.
    assert metrics["test/length_baseline"] == pytest.approx(0.596, abs=5e-3)


@pytest.mark.parametrize(
    ("name", "column"),
    [
        ("gsm8k/gsm8k_model_solutions.train", "question"),
        ("llmbar/llmbar.test", "input"),
        ("pandalm/pandalm.train", "instruction"),
        ("prompts/user_oriented_instructions.train", "instruction"),
        ("qa-feedback/qa_feedback.train", "question"),
        ("sentiment/sentence_polarity.test", "text"),
        ("toxicity/toxicity_en.test", "text"),
        ("xstest/xstest_prompts.test", "prompt"),
    ],
)
def test_every_text_column_is_read_as_prompts_without_a_change(shared_data: Path, name: str, column: str) -> None:
    path = shared_data / f"{name}.jsonl.gz"
    rows = read(Data(source=str(path), format="prompt", columns={"prompt": column}))
    assert [p.messages for p in rows.rows] == [({"role": "user", "content": row[column]},) for row in raw(path)]


def comparisons(rows: list[dict[str, Any]]) -> Iterator[dict[str, str]]:
    """The answers that people preferred, of four to each question, as the data set's own note has it."""
    for row in rows:
        answers = [row[f"prediction {number}"] for number in (1, 2, 3, 4)]
        for (first, second), better in zip(combinations(answers, 2), row["preference"], strict=True):
            if better:
                chosen, rejected = (first, second) if better == 1 else (second, first)
                yield {"prompt": row["question"], "chosen": chosen, "rejected": rejected}


def test_human_comparisons_of_four_answers_are_read_as_preferences(shared_data: Path, tmp_path: Path) -> None:
    pairs = list(comparisons(raw(shared_data / "qa-feedback" / "qa_feedback.test.jsonl.gz")))
    assert len(pairs) == 532
    path = tiny.write_lines(tmp_path / "pairs.jsonl", pairs)
    rows: Rows[Pair] = read(Data(source=str(path), format="preference"))
    assert rows.dropped == {}
    got = [{"prompt": p.prompt[0]["content"], "chosen": p.chosen, "rejected": p.rejected} for p in rows.rows]
    assert got == pairs


def view(folder: Path, text: str) -> View:
    path = folder / "study.yaml"
    path.write_text(text)
    return View.of(load(path).study, folder / "home", folder, offline=True)


OPENINGS = [
    "Once upon a time, there was a little girl named {}.",
    "{} was very happy.",
    "One day, {} went to the park.",
    "{} had a big red ball.",
    "{} was sad because it was raining.",
    "{} saw a scary dog.",
]
NAMES = ["Lily", "Tom", "Ben", "Mia", "Sara", "Max", "Anna", "Tim"]
STORIES = """\
version: 1
name: stories
seed: 5
models:
  base: {source: STORIES, template: text, precision: fp32}
data:
  openings: {source: ./openings.jsonl, format: prompt, split: {train: 32, eval: 16}}
rewards:
  sentiment: {kind: lexicon}
stages:
  rolls: {do: sample, from: base, prompts: openings.train, samples: 24, max_new_tokens: 48}
  pairs: {do: label, responses: rolls, reward: sentiment, pairs_per_prompt: 8, min_gap: 0.1}
  unseen: {do: sample, from: base, prompts: openings.eval, samples: 16, max_new_tokens: 48}
  held_out: {do: label, responses: unseen, reward: sentiment, pairs_per_prompt: 4, min_gap: 0.1}
  rm: {do: reward_model, from: base, data: pairs, test: held_out, learning_rate: 1e-3, epochs: 2.0, lora: null}
  bon: {do: decode, method: best_of_n, from: base, reward: rm, n: 8}
  table:
    do: evaluate
    policies: [base, bon]
    against: base
    prompts: openings.eval
    rewards: [rm, sentiment]
    budget: {max_new_tokens: 48, samples_per_prompt: 2}
    resamples: 500
"""


@pytest.mark.slow
@pytest.mark.timeout(600)
def test_best_of_n_makes_a_real_models_stories_happier(shared_data: Path, tmp_path: Path, prefect_server: str) -> None:
    tiny.write_lines(tmp_path / "openings.jsonl", [{"prompt": o.format(n)} for o in OPENINGS for n in NAMES])
    (tmp_path / "s.yaml").write_text(STORIES.replace("STORIES", str(shared_data / "models" / "stories260K")))
    done = subprocess.run(
        [sys.executable, "-m", "flows.cli", "run", "s.yaml", "--json"],
        cwd=tmp_path,
        env=os.environ | {"PREFECT_API_URL": prefect_server},
        capture_output=True,
        text=True,
        timeout=570,
    )
    assert done.returncode == 0, done.stderr
    assert set(json.loads(done.stdout)["stages"].values()) == {"done"}
    folder = tmp_path / ".alignflow" / "studies" / "stories"
    trained = json.loads((folder / "rm" / "record.json").read_text())["metrics"]
    assert trained["train/last_loss"] < trained["train/first_loss"]
    # Prompts that it was not trained on: better than a coin, and than the rule that the longer story is the happier.
    assert trained["test/accuracy_low"] > 0.5
    assert trained["test/accuracy"] > trained["test/length_baseline"]
    results = json.loads((folder / "table" / "evaluation.json").read_text())
    base, best = (p["rewards"] for p in results["policies"])
    learnt, sentiment = best
    assert base[0]["win_rate"] == {"estimate": 0.5, "low": 0.5, "high": 0.5}
    assert learnt["difference"]["low"] > 0
    assert 0.5 < learnt["win_rate"]["low"] <= learnt["win_rate"]["high"] <= 1
    assert sentiment["difference"]["estimate"] > 0
    assert all(-1 <= r["reward"]["low"] <= r["reward"]["high"] <= 1 for r in (base[1], sentiment))
    stories = [line["text"] for row in lines(folder / "rolls" / "responses.jsonl") for line in row["responses"]]
    assert len(stories) == 32 * 24
    # It knows how stories go: its commonest words are those of any children's book.
    words = re.findall(r"[a-z]+", " ".join(stories).lower())
    assert {"the", "and", "to", "was", "she"} <= set(sorted(set(words), key=words.count)[-12:])


def lines(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]


def test_greedy_stories_are_those_of_generate_token_for_token(shared_data: Path, tmp_path: Path) -> None:
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer

    from tasks.sampler import sample

    source = shared_data / "models" / "stories260K"
    text = f"version: 1\nname: s\nmodels:\n  base: {{source: {source}, template: text, precision: fp32}}\n"
    text += "stages:\n  greedy: {do: decode, method: greedy, from: base}\n"
    base: Artifact = view(tmp_path, text).artifact("base")
    ours = load_language_model(base)
    prompts = ["Once upon a time", *(opening.format(NAMES[i]) for i, opening in enumerate(OPENINGS))]
    encoded = [encode_prompt(ours.tokenizer, [{"role": "user", "content": prompt}]) for prompt in prompts]
    drawn = sample(
        ours.model, encoded, keys=prompts, samples=1, seed=0, max_new_tokens=80, eos_ids=ours.eos_ids, temperature=0
    )
    model, tokenizer = AutoModelForCausalLM.from_pretrained(source), AutoTokenizer.from_pretrained(source)
    assert model.dtype == torch.float32
    for prompt, ids, (story,) in zip(prompts, encoded, drawn, strict=True):
        given = tokenizer(prompt, return_tensors="pt")["input_ids"]
        assert given[0].tolist() == ids
        theirs = model.generate(given, attention_mask=torch.ones_like(given), max_new_tokens=80, do_sample=False)
        assert theirs[0, len(ids) :].tolist() == list(story.ids)
    told = tokenizer.decode([*encoded[0], *drawn[0][0].ids], skip_special_tokens=True)
    assert told.startswith("Once upon a time, there was a little girl named Lily. ")
