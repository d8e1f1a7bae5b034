"""Calibrated rewards of a policy whose every probability is known: what is stored, what is scored, what uses it."""

from __future__ import annotations

import dataclasses
import json
import math
from collections.abc import Callable, Iterator, Sequence
from itertools import product
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import stages
import tiny
import torch
from closed_forms import log_partition
from deaths import dies, dying
from scipy.stats import kstest
from transformers import AutoModelForCausalLM

from registry.methods import transforms
from registry.rewards import scorer
from registry.rows import Prompt
from specs.calibration import ForBestOfN, ForWorstOfN, Identity, Logarithm, Transform
from specs.execution import Execution
from specs.problems import UserError
from tasks import calibrate as calibrates
from tasks.answers import draw
from tasks.job import Log
from tasks.rules import rule_of
from tasks.scores import Scores
from tasks.transformed import log_partitions, transformation

MESSAGES = ["Why?", "How was the trip?", "Where to, and when?"]
TOKENS = {"a": 0.4, "b": 0.3, "c": 0.1, "<|end|>": 0.2}
COIN = {"a": 0.5, "b": 0.3, "c": 0.2}
REWARD = """\
def score(prompts, responses):  # rewards of one prompt are far from those of another
    return [r.count("b") + 0.5 * r.count("c") + 100.0 * len(p) for p, r in zip(prompts, responses)]
"""
STUDY = """\
models:
  base: {source: ./model, precision: fp32}
  coin: {source: ./coin, precision: fp32}
  other: {source: ./other, precision: fp32}
data:
  prompts: {source: ./prompts.jsonl, format: prompt}
  twice: {source: ./twice.jsonl, format: prompt}
  many: {source: ./many.jsonl, format: prompt}
  pairs: {source: ./pairs.jsonl, format: preference}
rewards:
  score: {kind: python, target: known_reward:score}
  flat: {kind: length, per_word: 0.0}
  blend: {kind: weighted, of: {cal: 2.0, score: 0.01}}
stages:
  cal: {do: calibrate, reward: score, reference: base, prompts: prompts, samples: 6, max_new_tokens: 4}
  again: {do: calibrate, reward: score, reference: base, prompts: twice, samples: 6, max_new_tokens: 4}
  same: {do: calibrate, reward: flat, reference: base, prompts: prompts, samples: 3, max_new_tokens: 4}
  over: {do: calibrate, reward: cal, reference: base, prompts: prompts, samples: 5, max_new_tokens: 4}
  likeliest: {do: decode, method: sample, from: base, top_k: 1}
  still: {do: calibrate, reward: score, reference: likeliest, prompts: prompts, samples: 3, max_new_tokens: 4}
  choice: {do: decode, method: best_of_n, from: base, reward: score, n: 3}
  chosen: {do: calibrate, reward: score, reference: choice, prompts: prompts, samples: 5, max_new_tokens: 4}
  wide: {do: calibrate, reward: score, reference: coin, prompts: many, samples: 4, max_new_tokens: 1}
  two: {do: decode, method: best_of_n, from: coin, reward: wide, n: 2}
  judged:
    do: evaluate
    policies: [coin, two]
    against: coin
    prompts: many
    budget: {max_new_tokens: 1, samples_per_prompt: 3}
    rewards: [wide]
  rolls: {do: sample, from: base, prompts: prompts, samples: 7, max_new_tokens: 4}
  labelled: {do: label, responses: rolls, reward: cal}
  bon: {do: decode, method: best_of_n, from: base, reward: cal, n: 4}
  top: {do: sample, from: bon, prompts: prompts, samples: 2, max_new_tokens: 4}
  table:
    do: evaluate
    policies: [base]
    against: base
    prompts: prompts
    budget: {max_new_tokens: 4, samples_per_prompt: 2}
    rewards: [cal, blend, over]
  arm: {do: autoregressive_reward_model, from: other, data: pairs, lora: null, learning_rate: 1e-2}
  ranked: {do: calibrate, reward: arm, reference: base, prompts: prompts, samples: 16, max_new_tokens: 2}
"""
SEED = 3  # of `stages.study`

Build = Callable[[str], Any]


def policy(folder: Path, tokens: dict[str, float]) -> Path:
    """A model that draws every token from one distribution whatever came before: its embeddings are ones, its layers
    add nothing, and a token's row of the head holds its log-probability."""
    tiny.language_model(folder, tie_word_embeddings=False, initializer_range=0.0)
    model = AutoModelForCausalLM.from_pretrained(folder)
    with torch.no_grad():
        model.get_input_embeddings().weight.fill_(1.0)
        head = model.get_output_embeddings().weight
        head.fill_(-40 / head.shape[1])
        for token, probability in tokens.items():
            head[tiny.tokenizer().convert_tokens_to_ids(token)] = math.log(probability) / head.shape[1]
    model.save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def view(tmp_path_factory: pytest.TempPathFactory) -> Any:
    folder = tmp_path_factory.mktemp("calibrate")
    policy(folder / "model", TOKENS)
    policy(folder / "coin", COIN)
    tiny.language_model(folder / "other")
    tiny.write_lines(folder / "prompts.jsonl", [{"prompt": m} for m in MESSAGES])
    tiny.write_lines(folder / "twice.jsonl", [{"prompt": MESSAGES[i]} for i in (0, 1, 0, 2, 0)])
    tiny.write_lines(folder / "many.jsonl", [{"prompt": f"Number {i:03}?"} for i in range(300)])
    tiny.write_lines(folder / "pairs.jsonl", [{"prompt": m, "chosen": "bbb", "rejected": "aa"} for m in MESSAGES])
    (folder / "known_reward.py").write_text(REWARD)
    return stages.study(folder, STUDY)


@pytest.fixture(scope="module")
def built(view: Any) -> Build:
    """A stage with everything below it, each built once."""
    known: dict[str, stages.Built] = {}

    def build(name: str) -> stages.Built | None:
        for _, below in view.nodes[name].inputs:
            build(below)
        if view.nodes[name].is_stage and view.nodes[name].kind != "decode" and name not in known:
            known[name] = stages.build(view, name)
        return known.get(name)  # of what is no stage nothing is asked

    return build


def test_rollouts_outlive_a_reward_that_fails(view: Any, built: Build, tmp_path: Path) -> None:
    into = tmp_path / "cal"
    with dying(into) as patch:
        patch.setattr(Scores, "of", dies)
        stages.build(view, "cal", into=into)
    resumed = stages.build(view, "cal", into=into)
    assert ("note", "the samples of the run before are taken up") in resumed.events
    assert not resumed.finished("responses") and built("cal").finished("responses")
    assert resumed.metrics == built("cal").metrics


def test_what_was_scored_before_a_death_is_not_scored_again(
    view: Any, built: Build, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    into = tmp_path / "cal"
    with dying(into) as patch:
        patch.setattr(calibrates, "uniformity", dies)
        stages.build(view, "cal", into=into)
    monkeypatch.setattr(Scores, "of", lambda *_, **__: pytest.fail("it scored again"))
    assert stages.build(view, "cal", into=into).metrics == built("cal").metrics


def draws(
    view: Any, name: str, samples: int, limit: int = 4, stream: str = "calibrate", chosen: int | None = None
) -> list[list[str]]:
    """What a policy answers to each prompt; of candidates, so many are `chosen`."""
    prompts = [Prompt(({"role": "user", "content": m},)) for m in MESSAGES]
    log = Log(lambda event: None)
    rule = rule_of(view.artifact(name))
    (found,) = draw([rule], prompts, samples, limit, SEED, Execution(), log, stream=stream, chosen=chosen)
    return [[a.text for a in row] for row in found]


def value(message: str, text: str) -> float:
    """What the Python reward gives."""
    return text.count("b") + 0.5 * text.count("c") + 100 * len(message)


def rank(reward: float, rollouts: Sequence[float]) -> float:
    return sum((z < reward) + 0.5 * (z == reward) for z in rollouts) / len(rollouts)


def lines(built: stages.Built, file: str) -> list[Any]:
    return [json.loads(line) for line in (built.folder / file).read_text().splitlines()]


def stored(built: stages.Built) -> dict[str, list[float]]:
    """The rewards of each prompt's rollouts, by its text."""
    rows = lines(built, "calibration.jsonl")
    texts = {Prompt(({"role": "user", "content": m},)).id: m for m in MESSAGES}
    return {texts[row["prompt"]]: row["rewards"] for row in rows}


def scores(built: stages.Built, message: str, *texts: str) -> list[float]:
    prompt = ({"role": "user", "content": message},)
    return scorer(built.artifact, batch=4)([prompt] * len(texts), texts)


def test_the_rewards_of_each_prompts_rollouts_are_stored_in_order(view: Any, built: Build) -> None:
    drawn = draws(view, "base", 7)
    found = stored(built("cal"))
    assert list(found) == MESSAGES
    for message, row in zip(MESSAGES, drawn, strict=True):
        # The seventh is the fresh one.
        assert found[message] == sorted(value(message, text) for text in row[:6])
    assert len({str(row) for row in drawn}) == 3


def test_an_answer_is_ranked_among_the_rollouts_of_its_own_prompt(view: Any, built: Build) -> None:
    cal = built("cal")
    texts = ["", "a", "b", "cc", "bc", "bb", "bbcb", "bbbb"]
    for message, rollouts in stored(cal).items():
        assert scores(cal, message, *texts) == [rank(value(message, text), rollouts) for text in texts]
        assert scores(cal, message, "bbbbb") == [1.0]
    # All prompts in one call, as a stage asks.
    prompts = [({"role": "user", "content": m},) for m in MESSAGES for _ in texts]
    expected = [rank(value(m, text), stored(cal)[m]) for m in MESSAGES for text in texts]
    assert scorer(cal.artifact, batch=4)(prompts, texts * 3) == expected
    assert len(set(expected)) > 5


def test_ties_count_one_half(built: Build, tmp_path: Path) -> None:
    kept = {"prompt": Prompt(({"role": "user", "content": "Why?"},)).id, "rewards": [400.0, 401.0, 401.0, 402.0]}
    tiny.write_lines(tmp_path / "calibration.jsonl", [kept | {"texts": ["a", "ab", "ba", "abb"]}])
    cal = built("cal")
    byhand = dataclasses.replace(cal, artifact=dataclasses.replace(cal.artifact, folder=tmp_path))
    # Of four: none below and one equal; one and none; one and two; three and none; three and one; four.
    assert scores(byhand, "Why?", "", "c", "cc", "bc", "bb", "bbb") == [0.125, 0.25, 0.5, 0.75, 0.875, 1.0]


def test_a_prompt_that_was_not_calibrated_gets_the_mean_rank_over_those_that_were(built: Build) -> None:
    cal = built("cal")
    # Rewards of prompts of 4, 17 and 19 letters: 1000 is above all of the first and below all of the others.
    assert scores(cal, "ten letter", "b") == [pytest.approx(1 / 3, abs=1e-12)]
    for text in ("", "b", "bc", "bbb"):
        inner = rank(1700 + value("", text), stored(cal)["How was the trip?"])
        assert scores(cal, "x" * 17, text) == [pytest.approx((1 + inner + 0) / 3, abs=1e-12)]
    assert scores(cal, "x" * 30, "") == [1.0]


def test_a_prompt_that_comes_again_is_calibrated_once(built: Build) -> None:
    once, again = built("cal"), built("again")
    assert again.metrics["prompts"] == once.metrics["prompts"] == 3
    assert (again.folder / "calibration.jsonl").read_bytes() == (once.folder / "calibration.jsonl").read_bytes()


def test_the_random_numbers_are_no_other_stages(view: Any, built: Build) -> None:
    # The same policy, prompts, seed and limit, and as many samples.
    found = stored(built("cal"))
    rolls = {
        row["prompt"][0]["content"]: [r["text"] for r in row["responses"]]
        for row in lines(built("rolls"), "responses.jsonl")
    }
    for message, row in zip(MESSAGES, draws(view, "base", 7), strict=True):
        assert row != rolls[message]
        assert sum(one == other for one, other in zip(row, rolls[message], strict=True)) < 5
    assert any(found[m] != sorted(value(m, text) for text in rolls[m][:6]) for m in MESSAGES)


def orders(draws: int) -> Iterator[tuple[float, list[float], tuple[float, ...]]]:
    """Probability, rewards of `draws` answers and of four rollouts, for each way they may come."""
    rewards = {"a": 0.0, "b": 1.0, "c": 0.5}
    for tokens in product(COIN, repeat=draws + 4):
        values = [rewards[t] for t in tokens]
        yield math.prod(COIN[t] for t in tokens), values[:draws], tuple(values[draws:])


def test_the_reference_has_the_mean_one_half_and_best_of_two_what_its_odds_give(built: Build) -> None:
    half = math.fsum(p * rank(fresh, rollouts) for p, (fresh,), rollouts in orders(1))
    assert half == pytest.approx(0.5, abs=1e-12)
    best = math.fsum(p * rank(max(two), rollouts) for p, two, rollouts in orders(2))
    evaluation = json.loads((built("judged").folder / "evaluation.json").read_text())
    means = [entry["rewards"][0]["reward"]["estimate"] for entry in evaluation["policies"]]
    # 300 prompts of three answers: a standard error of about 0.012. Counted among themselves, ties as reached, the
    # reference's would have the mean 0.68.
    assert means == pytest.approx([half, best], abs=0.03)
    assert best > 0.6


def test_the_uniformity_of_a_fresh_draw_is_tested(view: Any, built: Build) -> None:
    cal = built("cal")
    test = json.loads((cal.folder / "uniformity.json").read_text())
    v = np.random.default_rng(SEED).random(3)
    expected = []
    for number, (message, row) in enumerate(zip(MESSAGES, draws(view, "base", 7), strict=True)):
        *rollouts, fresh = (value(message, text) for text in row)
        below, equal = sum(z < fresh for z in rollouts), sum(z == fresh for z in rollouts)
        expected.append((below + v[number] * (equal + 1)) / 7)
    assert test["values"] == pytest.approx(expected)
    law = kstest(expected, "uniform")
    assert (test["statistic"], test["p_value"]) == pytest.approx((law.statistic, law.pvalue))
    assert cal.metrics["uniformity/statistic"] == test["statistic"]
    assert cal.metrics["uniformity/p_value"] == test["p_value"]
    wide = built("wide")
    assert wide.metrics["uniformity/p_value"] > 0.05
    values = json.loads((wide.folder / "uniformity.json").read_text())["values"]
    assert len(values) == len(set(values)) == 300 and np.mean(values) == pytest.approx(0.5, abs=0.05)


def test_what_it_measures(view: Any, built: Build) -> None:
    metrics = built("cal").metrics
    rollouts = [[value(m, t) for t in row[:6]] for m, row in zip(MESSAGES, draws(view, "base", 7), strict=True)]
    assert (metrics["prompts"], metrics["samples"]) == (3, 6)
    assert metrics["reward"] == pytest.approx(np.mean(rollouts))
    assert metrics["distinct_rewards"] == pytest.approx(np.mean([len(set(row)) / 6 for row in rollouts]))
    ranks = [rank(row[i], row[:i] + row[i + 1 :]) for row in rollouts for i in range(6)]
    assert metrics["rank_variance"] == pytest.approx(np.var(ranks))
    assert metrics["prompts_without_signal"] == 0
    assert 1 < metrics["tokens_per_response"] < 4 and 0 < metrics["finished"] < 1


def test_rollouts_that_are_all_alike_say_nothing_but_better_and_worse(built: Build) -> None:
    still = built("still")  # of its likeliest token the known policy says a, again and again
    assert still.metrics["prompts_without_signal"] == 3
    assert (still.metrics["rank_variance"], still.metrics["distinct_rewards"]) == (0, pytest.approx(1 / 3))
    assert scores(still, "Why?", "aaaa", "b", "") == [0.5, 1.0, 0.5]
    same = built("same")
    assert scores(same, "Why?", "aaaa", "b") == [0.5, 0.5]
    assert scores(same, "A stranger?", "aaaa", "b") == [0.5, 0.5]


def test_the_reference_may_be_a_decoding_rule(view: Any, built: Build) -> None:
    found = stored(built("chosen"))
    # Six answers of best of three: answer s is the best of the draws s, s + 6 and s + 12.
    for message, row in zip(MESSAGES, draws(view, "base", 18, chosen=6), strict=True):
        best = [max(value(message, text) for text in row[s::6]) for s in range(6)]
        assert found[message] == sorted(best[:5])


def test_a_calibrated_reward_labels(built: Build) -> None:
    rollouts = stored(built("cal"))
    pairs = lines(built("labelled"), "pairs.jsonl")
    assert len(pairs) == 3
    for pair in pairs:
        message = pair["prompt"][0]["content"]
        for side in ("chosen", "rejected"):
            assert pair[f"reward_{side}"] == rank(value(message, pair[side]), rollouts[message])
        assert pair["reward_chosen"] > pair["reward_rejected"]


def test_a_calibrated_reward_chooses_the_best_of_n(view: Any, built: Build) -> None:
    rollouts = stored(built("cal"))
    eight = draws(view, "base", 8, stream="", chosen=2)
    rows = lines(built("top"), "responses.jsonl")
    for message, row, drawn in zip(MESSAGES, rows, eight, strict=True):
        ranks = [rank(value(message, text), rollouts[message]) for text in drawn]
        for s, response in enumerate(row["responses"]):
            assert response["text"] == drawn[max(range(s, 8, 2), key=lambda j: (ranks[j], -j))]


def test_a_calibrated_reward_judges_alone_weighted_and_calibrated_again(view: Any, built: Build) -> None:
    table, once, twice = (built(name) for name in ("table", "cal", "over"))
    rows = lines(table, "generations.jsonl")
    assert len(rows) == 6
    again = stored(twice)
    for message, drawn in zip(MESSAGES, draws(view, "base", 6), strict=True):
        assert again[message] == sorted(rank(value(message, t), stored(once)[message]) for t in drawn[:5])
    for row in rows:
        message, text = row["prompt"][0]["content"], row["response"]
        calibrated = rank(value(message, text), stored(once)[message])
        blended = 2 * calibrated + 0.01 * value(message, text)
        assert row["rewards"] == pytest.approx([calibrated, blended, rank(calibrated, again[message])])


def test_an_autoregressive_reward_model_is_calibrated_and_a_text_ties_with_itself(view: Any, built: Build) -> None:
    ranked = built("ranked")
    reward, score = (scorer(artifact, batch=64) for artifact in (view.artifact("arm"), ranked.artifact))
    ties = 0
    for message, row in zip(MESSAGES, draws(view, "base", 16, 2), strict=True):
        prompt = ({"role": "user", "content": message},)
        values = dict(zip(row, reward([prompt] * 16, row), strict=True))
        assert stored(ranked)[message] == pytest.approx(sorted(values[text] for text in row), abs=1e-4)
        for text in [*values, "never drawn"]:
            # Scores of a text differ in their last digits from batch to batch; those of two texts by far more.
            (own,) = [values[text]] if text in values else reward([prompt], [text])
            below = sum(values[other] < own for other in row if other != text)
            expected = (below + 0.5 * row.count(text)) / 16
            assert score([prompt], [text]) == [expected]
            assert score([prompt] * 3, ["b" * 9, text, "a"])[1] == expected
            ties += row.count(text) > 1
    assert ties > 5


BEST, WORST = ForBestOfN(kind="best_of_n", t=10.0), ForWorstOfN(kind="worst_of_n", t=10.0)
IDENTITY, LOG = Identity(kind="identity"), Logarithm(kind="log")
FIXED_BEST = ForBestOfN(kind="best_of_n", n=2)
FIXED_WORST = ForWorstOfN(kind="worst_of_n", n=2)


@pytest.mark.parametrize(
    ("transform", "expected"),
    [
        (IDENTITY, [0.0, 0.25, 1.0]),
        (BEST, [math.exp(-10), math.exp(-7.5), 1.0]),
        (ForBestOfN(kind="best_of_n", t=2.0), [math.exp(-2), math.exp(-1.5), 1.0]),
        (WORST, [-1.0, -math.exp(-2.5), -math.exp(-10)]),
        (ForWorstOfN(kind="worst_of_n", t=2.0), [-1.0, -math.exp(-0.5), -math.exp(-2)]),
        # Four rollouts: (4 u + 1/2) / 5.
        (LOG, [math.log(0.1), math.log(0.3), math.log(0.9)]),
        # Far from nothing but the reference: n^2 / (2n - 1) u^(2n - 1), and the same of 1 - u taken from its end.
        (FIXED_BEST, [0.0, 4 / 3 / 64, 4 / 3]),
        (FIXED_WORST, [0.0, 4 / 3 * (1 - 27 / 64), 4 / 3]),
    ],
)
def test_each_transform_is_its_formula(transform: Transform, expected: list[float]) -> None:
    beta = 1e5 if getattr(transform, "n", None) else 0.1
    found = transformation(transform, beta, 4)(np.array([0.0, 0.25, 1.0]))
    assert found == pytest.approx(expected, abs=1e-4 if beta == 1e5 else 1e-12)
    assert np.isfinite(found).all()


@pytest.mark.parametrize("beta", [0.05, 0.5])
def test_a_fixed_point_is_that_of_its_n_and_beta(beta: float) -> None:
    u = np.linspace(0, 1, 401)  # every fifth point of the grid
    for transform, on_grid in (
        (ForBestOfN(kind="best_of_n", n=3), transforms.best_of_n_fixed_point(3, beta)),
        (ForWorstOfN(kind="worst_of_n", n=3), transforms.worst_of_n_fixed_point(3, beta)),
    ):
        assert transformation(transform, beta, 64)(u) == pytest.approx(on_grid[::5], abs=1e-12)


def test_a_fixed_point_that_cannot_be_is_told() -> None:
    with pytest.raises(UserError, match=r"`transform`: n is 2, beta 0"):
        transformation(FIXED_BEST, 0.0, 64)


@pytest.mark.parametrize(
    ("transform", "beta", "expected"),
    [
        (IDENTITY, 0.5, math.log((1 + math.exp(2 / 3) + math.exp(4 / 3) + math.exp(2)) / 4)),
        (LOG, 1.0, math.log(1 / 2)),  # the mean of 1/8, 3/8, 5/8, 7/8
        (LOG, 0.5, math.log((1 + 9 + 25 + 49) / 64 / 4)),
        (BEST, 0.5, math.log(sum(math.exp(2 * math.exp(10 * (k / 3 - 1))) for k in range(4)) / 4)),
        (WORST, 0.01, math.log(sum(math.exp(-100 * math.exp(-10 * k / 3)) for k in range(4)) / 4)),
    ],
)
def test_the_log_partition_is_over_the_ranks_of_the_rollouts_among_the_others(
    transform: Transform, beta: float, expected: float
) -> None:
    # Four rollouts without ties: the ranks 0, 1/3, 2/3, 1 that a fresh draw takes among three.
    assert log_partitions(transform, beta, [np.array([3.0, 1.0, 4.0, 9.0])]) == pytest.approx([expected], abs=1e-12)


def test_each_prompt_has_the_log_partition_of_its_rollouts() -> None:
    rollouts = [np.array([1.0, 1.0, 1.0]), np.array([0.0, 1.0, 1.0])]
    # Smoothed among two: 1/2 for all; 1/6 and twice 2/3.
    expected = [math.log(1 / 2), math.log((1 / 6 + 2 * 2 / 3) / 3)]
    assert log_partitions(LOG, 1.0, rollouts) == pytest.approx(expected, abs=1e-12)
    assert log_partitions(BEST, 0.5, rollouts[:1]) == pytest.approx([2 * math.exp(-5)], abs=1e-12)


U = np.linspace(0, 1, 2001)


@pytest.mark.parametrize(
    ("transform", "beta", "limit"),
    [
        (IDENTITY, 0.1, math.log(0.1 * math.expm1(1 / 0.1))),
        (IDENTITY, 2.0, math.log(2.0 * math.expm1(1 / 2.0))),
        (LOG, 1 / 3, -math.log(4)),  # the integral of u^3
        (LOG, 1 / 3, log_partition(transforms.log(U), 1 / 3)),
        (BEST, 0.3, log_partition(transforms.best_of_n_exponential(U, 10), 0.3)),
        (WORST, 0.01, log_partition(transforms.worst_of_n_exponential(U, 10), 0.01)),
        (FIXED_BEST, 0.2, log_partition(transforms.best_of_n_fixed_point(2, 0.2), 0.2)),
        (FIXED_WORST, 0.2, log_partition(transforms.worst_of_n_fixed_point(2, 0.2), 0.2)),
    ],
)
def test_with_many_rollouts_the_log_partition_is_the_integral(transform: Transform, beta: float, limit: float) -> None:
    few, many = (
        abs(log_partitions(transform, beta, [np.arange(float(rollouts))])[0] - limit) for rollouts in (21, 50_001)
    )
    assert many < 2e-4 and many < few / 20
