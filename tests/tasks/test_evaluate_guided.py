"""Guided policies in a comparison: what an answer of theirs costs, in any company, and what their guides looked at."""

from __future__ import annotations

import json
import math
from pathlib import Path
from statistics import fmean
from typing import Any

import pytest
import stages
import tiny

from tasks.evaluation_table import Evaluation, named

PROMPTS = ["Why?", "How was the trip to the far side of the lake?", "Where to, on such a day?"]
STUDY = """\
models:
  base: {source: ./model, precision: fp32}
  other: {source: ./other, precision: fp32}
data: {prompts: {source: ./prompts.jsonl, format: prompt}}
rewards:
  words: {kind: length}
  classes: {kind: classifier, source: ./classes, precision: fp32}
stages:
  args: {do: decode, method: args, from: base, reward: classes, candidates: 5, strength: 1.0}
  mixed: {do: decode, method: mod, from: base, policies: {other: 0.4}}
  blocks: {do: decode, method: controlled_decoding, from: base, scorers: {words: 1.0}, block: 3, samples: 4}
  cards: {do: decode, method: cards, from: base, reward: classes, target: 40.0, entropy: 1.0, shortest: 2, tries: 3}
  best: {do: decode, method: best_of_n, from: base, reward: classes, n: 3}
  read: {do: decode, method: controlled_decoding, from: base, scorers: {classes: 1.0}, block: 3, samples: 4}
  table:
    do: evaluate
    policies: [base, args, mixed, blocks, cards, best, read]
    against: other
    prompts: prompts
    rewards: [words]
    budget: {max_new_tokens: 10, samples_per_prompt: 2}
    resamples: 100
"""
POLICIES = ("base", "args", "mixed", "blocks", "cards", "best", "read", "other")


class Built:
    def __init__(self, folder: Path, rows: int):
        built = stages.build(stages.study(folder, STUDY), "table", folder / f"rows{rows}", rows=rows)
        self.folder = built.folder
        self.evaluation: Evaluation = named(built.artifact)
        results = json.loads((self.folder / "evaluation.json").read_text())["policies"]
        self.cost: dict[str, Any] = {name: p["cost"] for name, p in zip(POLICIES, results, strict=True)}
        lines = [json.loads(line) for line in (self.folder / "generations.jsonl").read_text().splitlines()]
        self.lengths = {
            name: [row["tokens"] for row in lines if row["policy"] == place] for place, name in enumerate(POLICIES)
        }


@pytest.fixture(scope="module")
def both(tmp_path_factory: pytest.TempPathFactory) -> tuple[Built, Built]:
    """The same in batches of two sizes."""
    folder = tmp_path_factory.mktemp("guided")
    for seed, name in enumerate(("model", "other")):
        tiny.language_model(folder / name, seed=seed, initializer_range=0.3)
    tiny.classifier(folder / "classes", seed=2, initializer_range=1.0)  # under seed 0 texts tie
    tiny.write_lines(folder / "prompts.jsonl", [{"prompt": text} for text in PROMPTS])
    return Built(folder, 3), Built(folder, 64)


def test_what_an_answer_costs_does_not_depend_on_its_company(both: tuple[Built, Built]) -> None:
    assert both[0].lengths == both[1].lengths
    for name in POLICIES:
        assert both[0].cost[name] == pytest.approx(both[1].cost[name])


def test_a_greedy_answer_is_paid_for_once_though_it_serves_for_every_sample(both: tuple[Built, Built]) -> None:
    cost, length = both[0].cost["args"], fmean(both[0].lengths["args"])
    assert cost["tokens"] == pytest.approx(length)
    assert cost["decode_positions"] == pytest.approx(length - 1)
    # Its guide reads the prompt, and five candidates for every token; of an end also what the template writes behind it.
    assert cost["guide_positions"] >= cost["prompt_positions"] + 5 * length


def test_a_second_model_reads_what_the_first_one_does(both: tuple[Built, Built]) -> None:
    cost = both[0].cost["mixed"]
    assert cost["guide_positions"] == pytest.approx(cost["prompt_positions"] + fmean(both[0].lengths["mixed"]) - 1)


def test_all_branches_of_a_block_were_drawn_and_all_of_them_scored(both: tuple[Built, Built]) -> None:
    cost, lengths = both[0].cost["blocks"], both[0].lengths["blocks"]
    assert cost["texts_scored"] == pytest.approx(fmean(4 * math.ceil(length / 3) for length in lengths))
    assert fmean(lengths) < cost["tokens"] <= 4 * fmean(3 * math.ceil(length / 3) for length in lengths)


def test_a_model_that_chooses_reads_every_draw_with_its_prompt(both: tuple[Built, Built]) -> None:
    cost = both[0].cost["best"]
    assert cost["texts_scored"] == 3
    # It reads them as texts, of which half a character has more bytes than it had tokens.
    assert cost["guide_positions"] >= 3 * cost["prompt_positions"] + cost["tokens"]
    assert both[0].cost["base"]["guide_positions"] == both[0].cost["blocks"]["guide_positions"] == 0
    by_blocks = both[0].cost["read"]
    assert by_blocks["guide_positions"] > by_blocks["texts_scored"] * by_blocks["prompt_positions"]


def test_segments_that_were_refused_were_drawn(both: tuple[Built, Built]) -> None:
    assert both[0].cost["cards"]["tokens"] > fmean(both[0].lengths["cards"])


def test_what_measures_a_policy_is_no_part_of_its_cost(both: tuple[Built, Built]) -> None:
    """The reference, `other`, reads along with `mixed` twice: once as its guide, once to measure it."""
    kl = {name: found and found[0] for name in POLICIES for found in [both[0].evaluation.kl(name)]}
    assert kl == {
        "base": "rao_blackwell", "args": "point_mass", "mixed": "rao_blackwell", "blocks": None, "cards": None,
        "best": "best_of_n", "read": None, "other": "rao_blackwell",
    }  # fmt: skip
    assert both[0].cost["base"]["guide_positions"] == 0


def test_what_guides_looked_at_is_kept_of_the_first_answer_of_each(both: tuple[Built, Built]) -> None:
    lines = [json.loads(line) for line in (both[0].folder / "traces.jsonl").read_text().splitlines()]
    traces = {POLICIES[line["policy"]]: line for line in lines}
    assert traces.keys() == {"args", "mixed", "blocks", "cards", "read"}
    assert all(line["prompt"] == PROMPTS[0] for line in lines)
    for name in ("args", "mixed"):
        events = traces[name]["events"]
        assert [event["step"] for event in events] == list(range(both[0].lengths[name][0]))
        assert all(sum(c["chosen"] for c in event["candidates"]) == 1 for event in events)
    kept = [next(b for b in event["branches"] if b["chosen"]) for event in traces["blocks"]["events"]]
    assert sum(len(b["ids"]) for b in kept) == both[0].lengths["blocks"][0]
