"""Audits: copying, a guide that was pleased more than gold was, and trainings that differ by their seed alone."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import handmade
import numpy as np
import pytest
import stages
import tiny

from registry.methods.audits import divergence_of_gold
from registry.methods.comparison import over_seeds
from registry.rows import Prompt
from tasks.audited import Learnt, Met
from tasks.evaluation_table import Evaluation, named

PROMPTS = [f"Tell me of {'a very ' * i}long number {i}." for i in range(6)]
STUDY = """\
models: {base: {source: ./model, precision: fp32}}
data: {prompts: {source: ./prompts.jsonl, format: prompt}}
rewards:
  words: {kind: length}
  letters: {kind: python, target: rewards_of_the_audit:letters}
stages:
  rolls: {do: sample, from: base, prompts: prompts, samples: 6, max_new_tokens: 12}
  pairs: {do: label, responses: rolls, reward: letters}
  tuned: {do: sft, from: base, data: pairs, lora: {rank: 2, alpha: 4}, learning_rate: 1e-2, sweep: {seed: [1, 2]}}
  best: {do: decode, method: best_of_n, from: "tuned[seed=1]", reward: words, n: 2}
  table:
    do: evaluate
    policies: [base, tuned, best]
    against: base
    prompts: prompts
    rewards: [letters, words]
    budget: {max_new_tokens: 12, samples_per_prompt: 2}
    resamples: 300
"""
REWARDS = """\
def letters(prompts, responses):
    return [float(sum(c.isascii() and c.isalpha() for c in r)) for r in responses]
"""


@pytest.fixture(scope="module")
def evaluation(tmp_path_factory: pytest.TempPathFactory) -> tuple[Evaluation, Path]:
    folder = tmp_path_factory.mktemp("audited")
    tiny.language_model(folder / "model")
    tiny.write_lines(folder / "prompts.jsonl", [{"prompt": text} for text in PROMPTS])
    (folder / "rewards_of_the_audit.py").write_text(REWARDS)
    view = stages.study(folder, STUDY)
    for name in ("rolls", "pairs", "tuned[seed=1]", "tuned[seed=2]", "best"):
        stages.build(view, name)
    built = stages.build(view, "table")
    return named(built.artifact), built.folder


def values(folder: Path, policy: int, reward: int) -> np.ndarray:
    rows = [json.loads(line) for line in (folder / "generations.jsonl").read_text().splitlines()]
    own = [row for row in rows if row["policy"] == policy]
    return np.array(
        [[r["rewards"][reward] for r in own if r["prompt"][0]["content"] == text] for text in PROMPTS], dtype=float
    )


def test_seeds_of_one_training_are_taken_together_and_what_is_drawn_from_one_of_them_is_not(evaluation: Any) -> None:
    found, folder = evaluation
    rows = list(found.over_seeds())
    assert {(row["policies"], row["seeds"]) for row in rows} == {("tuned[seed=1], tuned[seed=2]", 2)}
    means = np.stack([values(folder, i, 0).mean(1) for i in (1, 2)])
    expected = over_seeds(means - values(folder, 0, 0).mean(1), confidence=0.95)
    row = next(row for row in rows if row["judged_by"] == "letters")
    assert (row["difference"], row["difference_low"], row["difference_high"]) == pytest.approx(tuple(expected))


def test_what_the_guide_gained_is_held_against_what_gold_did(evaluation: Any) -> None:
    found, folder = evaluation
    rows = {(row["policy"], row["guide"], row["gold"]): row for row in found.apart()}
    # Pairs that letters ordered taught `tuned`; `best` chooses by words besides, so that nothing judges it from outside.
    assert rows.keys() == {("tuned[seed=1]", "letters", "words"), ("tuned[seed=2]", "letters", "words")}
    gains = [values(folder, 1, reward).mean(1) - values(folder, 0, reward).mean(1) for reward in (0, 1)]
    of_base = [values(folder, 0, reward) for reward in (0, 1)]
    more = divergence_of_gold(*gains, guide_reference=of_base[0], gold_reference=of_base[1])
    assert rows["tuned[seed=1]", "letters", "words"]["gained_more"] == pytest.approx(more.mean())


def test_prompts_that_a_policy_was_made_on_are_no_held_out_ones(evaluation: Any) -> None:
    found, _ = evaluation
    assert [row["prompts_met"] for row in found.policy_rows()] == [0, 6, 6, 6]
    each = "tuned[seed=1] (all), tuned[seed=2] (all), best (all)"
    assert found.met().endswith(f"of the 6 prompts, those that policies or their guides were made on: {each}")


def test_prompts_are_the_same_by_their_words_wherever_they_lie(tmp_path: Path) -> None:
    tiny.language_model(tmp_path / "model")
    tiny.write_lines(
        tmp_path / "some.jsonl", [{"prompt": p, "chosen": "yes", "rejected": "no"} for p in ("a", "b", "c")]
    )
    study = """\
models: {base: {source: ./model, precision: fp32}}
data: {some: {source: ./some.jsonl, format: preference, split: {one: 2, two: 1}}}
stages: {tuned: {do: sft, from: base, data: some.one}}
"""
    met = Met([Prompt(({"role": "user", "content": text},)) for text in "abcd"])
    view = stages.study(tmp_path, study)
    assert met.by(view.artifact("base")) == {"prompts": 0, "unknown": 0}
    assert met.by(view.artifact("tuned")) == {"prompts": 2, "unknown": 0}
    tiny.write_lines(tmp_path / "some.jsonl", [{"prompt": "a", "chosen": "yes", "rejected": "no"}])
    assert met.by(view.artifact("tuned")) == {"prompts": 0, "unknown": 1}  # nobody knows what the file held


def test_a_model_is_asked_what_it_copied_where_it_was_trained_on_stored_answers(evaluation: Any) -> None:
    found, _ = evaluation
    base, *tuned, best = found.policy_rows()
    assert "copied_words" not in base
    for row in (*tuned, best):
        assert 0 <= row["copied_words_low"] <= row["copied_words"] <= 1 and 0 <= row["copied_whole"] <= 1


def test_every_number_reaches_mlflow_under_a_name_that_it_takes(evaluation: Any) -> None:
    found, _ = evaluation
    metrics = found.metrics()
    assert "tuned-seed-1/gained_more/letters than words" in metrics
    assert all(isinstance(value, float | int) for value in metrics.values())
    allowed = set("abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789_-. /")
    assert not {character for name in metrics for character in name} - allowed


GIVEN = """\
  tuned: {do: dpo, from: base, data: given}
"""


def test_what_a_model_copied_is_not_known_where_what_it_learnt_from_is_not_here(tmp_path: Path, home: Path) -> None:
    pair = {"prompt": "Why?", "chosen": "Because.", "rejected": "No."}
    tiny.write_lines(tmp_path / "given.jsonl", [pair])
    text = handmade.STUDY.replace("data:\n", "data:\n  given: {source: ./given.jsonl, format: preference}\n") + GIVEN
    made = handmade.view(tmp_path, text)
    sft, tuned = made.artifact("sft"), made.artifact("tuned")
    assert Learnt().by(made.artifact("base")) is None and Learnt().by(sft) is None
    handmade.put(made, "pairs", {"pairs.jsonl": handmade.lines(pair)})
    for policy in (sft, tuned):
        known = Learnt().by(policy)
        assert known is not None and known.has("Because.")
    tiny.write_lines(tmp_path / "given.jsonl", [pair | {"chosen": "So."}])
    assert Learnt().by(tuned) is None


OWN = """\
  ranked: {do: rrhf, from: base, data: prompts.train, reward: gold}
  chosen: {do: raft, from: base, prompts: prompts.train, reward: gold, rounds: 2}
  learner: {do: bond, from: base, prompts: prompts.train, reward: gold}
"""


def test_what_a_stage_drew_for_itself_and_learnt_from_counts_and_what_it_let_go_does_not(
    tmp_path: Path, home: Path
) -> None:
    made = handmade.view(tmp_path, handmade.STUDY + OWN)

    def drew(name: str, **uses: str) -> None:
        responses = [{"text": text, "use": use} for text, use in uses.items()]
        handmade.put(made, name, {"samples.jsonl": handmade.lines({"prompt": [], "responses": responses})})

    ranked, last = made.artifact("ranked"), made.artifact("chosen")
    assert Learnt().by(ranked) is None and Learnt().by(last) is None  # nothing is there
    drew("ranked", Yes="candidate", No="candidate")
    known = Learnt().by(ranked)
    assert known is not None and known.has("Yes") and known.has("No")
    first = made.artifact("chosen[round=1]")
    drew("chosen[round=1]", Yes="kept", No="discarded")
    handmade.put(made, "chosen", {"round.json": json.dumps({"stopped": True}), "samples.jsonl": ""})
    for policy in (first, last):
        known = Learnt().by(policy)
        assert known is not None and known.has("Yes") and not known.has("No")
    handmade.put(made, "learner", {"training.jsonl": ""})
    assert Learnt().by(made.artifact("learner")) is None
