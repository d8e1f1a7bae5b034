"""Policies answer prompts: who shares draws with whom, how the best is chosen, and what an answer may depend on."""

from __future__ import annotations

import itertools
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import letters
import pytest
import stages
import tiny
import transformers
from asked import MESSAGES, PROMPTS, Asked

from registry.dialogue_text import decode_answer, encode_prompt
from registry.language_models import load_language_model
from registry.rows import Prompt
from specs.execution import Execution
from specs.problems import UserError
from tasks.answers import best_draw, keys, leave_room
from tasks.job import Log
from tasks.rules import rule_of
from tasks.sampler import sample
from tasks.scores import Scores

STUDY = """\
models:
  base: {source: ./model, precision: fp32}
  other: {source: ./other, precision: fp32}
data: {prompts: {source: ./prompts.jsonl, format: prompt}}
rewards:
  score: {kind: python, target: counted_reward:score}
  twin: {kind: python, target: counted_reward:score}
  flat: {kind: length, per_word: 0.0}
stages:
  greedy: {do: decode, method: greedy, from: base}
  plain: {do: decode, method: sample, from: base}
  cool: {do: decode, method: sample, from: base, temperature: 0.5, top_k: 20, top_p: 0.9}
  bon: {do: decode, method: best_of_n, from: base, reward: score, sweep: {n: [2, 4]}}
  any: {do: decode, method: best_of_n, from: base, reward: flat, n: 3}
"""
REWARD = """\
calls = []

def score(prompts, responses):
    calls.append(list(zip(prompts, responses)))
    return [float(sum(r.encode()) % 101) for r in responses]
"""


@pytest.fixture(scope="module")
def view(tmp_path_factory: pytest.TempPathFactory) -> Any:
    folder = tmp_path_factory.mktemp("answers")
    tiny.language_model(folder / "model")
    tiny.language_model(folder / "other", seed=1)
    tiny.write_lines(folder / "prompts.jsonl", [{"prompt": text} for text in MESSAGES])
    (folder / "counted_reward.py").write_text(REWARD)
    return stages.study(folder, STUDY)  # puts the folder on the path, as a run does


@pytest.fixture
def calls(view: Any) -> Iterator[list[Any]]:
    """What the Python reward was asked, call by call."""
    import counted_reward  # type: ignore[import-not-found]

    counted_reward.calls.clear()
    yield counted_reward.calls
    counted_reward.calls.clear()


def value(text: str) -> int:
    """What the Python reward gives."""
    return sum(text.encode()) % 101


def test_every_policy_gives_each_prompt_its_samples(view: Any) -> None:
    asked = Asked(view, "base", "other", "greedy", "plain", "cool", "bon[n=2]", samples=3)
    for rows in asked.answers.values():
        assert [len(row) for row in rows] == [3, 3, 3]
        assert all(1 <= a.tokens <= 10 for row in rows for a in row)
        assert all(a.finished or a.tokens == 10 for row in rows for a in row)


def test_a_language_model_is_the_policy_that_samples_at_temperature_one(view: Any) -> None:
    asked = Asked(view, "base", "plain", "cool", "other")
    assert asked["base"] == asked["plain"]
    assert len({str(asked[name]) for name in ("base", "cool", "other")}) == 3


def test_greedy_gives_its_one_answer_again_and_again(view: Any) -> None:
    for row in Asked(view, "greedy", samples=3)["greedy"]:
        assert row == [row[0]] * 3
    assert Asked(view, "greedy", seed=1)["greedy"] == Asked(view, "greedy", seed=2)["greedy"]
    assert Asked(view, "greedy", samples=3).generated == [3]


@pytest.mark.parametrize("samples", [1, 2, 3])
def test_best_of_n_looks_at_nested_draws_that_begin_with_the_plain_answers(view: Any, samples: int) -> None:
    asked = Asked(view, "base", "bon[n=2]", "bon[n=4]", samples=samples)
    model = load_language_model(view.artifact("base"))
    prompts = [encode_prompt(model.tokenizer, prompt.messages) for prompt in PROMPTS]
    options: dict[str, Any] = {"keys": keys(PROMPTS), "seed": 5, "max_new_tokens": 10, "eos_ids": model.eos_ids}
    draws = sample(model.model, prompts, samples=4 * samples, chosen=samples, **options)
    for p, row in enumerate([decode_answer(model.tokenizer, draw.ids) for draw in row] for row in draws):
        assert asked["base"][p] == row[:samples]
        for s in range(samples):
            for n in (2, 4):
                seen = row[s : n * samples : samples]
                assert len(seen) == n and seen[0] == asked["base"][p][s]
                assert asked[f"bon[n={n}]"][p][s] == max(seen, key=value)
    # Better, never worse, with more to choose from, and here truly better.
    best = [[value(asked[name][p][s]) for p in range(3) for s in range(samples)] for name in asked.answers]
    assert all(one <= two <= four for one, two, four in zip(*best, strict=True))
    assert sum(best[0]) < sum(best[2])


def test_how_many_answers_are_asked_for_changes_none_of_them(view: Any) -> None:
    three, one = (Asked(view, "base", "bon[n=4]", samples=samples) for samples in (3, 1))
    for name in ("base", "bon[n=4]"):
        assert [row[:1] for row in three[name]] == one[name]
    assert len({str(row) for row in three["bon[n=4]"]}) == len(PROMPTS)


def test_policies_over_one_distribution_share_one_generation(view: Any) -> None:
    asked = Asked(view, "base", "plain", "bon[n=2]", "bon[n=4]", "any", samples=2)
    # 3 prompts x 2 samples x the 4 candidates of the largest n.
    assert asked.generated == [24]
    assert Asked(view, "base", "cool", "greedy", "other", "plain").generated == [6, 6, 3, 6]


def test_equal_rewards_go_to_the_first_draw(view: Any) -> None:
    asked = Asked(view, "any", "base")
    assert asked["any"] == asked["base"]


def test_the_best_draw_is_the_first_of_the_highest_among_the_samples_own() -> None:
    rewards = [1.0, 5.0, 3.0, 9.0, 3.0, 9.0]
    assert best_draw(rewards, 0, 2) == 2  # of draws 0, 2, 4
    assert best_draw(rewards, 1, 2) == 3  # of draws 1, 3, 5
    assert best_draw(rewards, 0, 1) == 3
    assert best_draw([2.0, 2.0, 2.0], 0, 1) == 0


def test_repeated_prompts_have_random_numbers_of_their_own(view: Any) -> None:
    assert len(set(keys([PROMPTS[0], PROMPTS[1], PROMPTS[0], PROMPTS[0]]))) == 4
    three = Asked(view, "base", prompts=[PROMPTS[0]] * 3)["base"]
    assert len({str(row) for row in three}) == 3
    assert three[0] == Asked(view, "base", prompts=PROMPTS[:1])["base"][0]


def test_an_answer_belongs_to_its_prompt_wherever_that_stands(view: Any) -> None:
    here = Asked(view, "base", "bon[n=2]")
    there = Asked(view, "base", "bon[n=2]", prompts=PROMPTS[::-1])
    for name in here.answers:
        assert here[name] == there[name][::-1]


def test_the_number_of_rows_in_a_batch_decides_nothing(view: Any) -> None:
    names = ("base", "greedy", "cool", "bon[n=4]")
    whole = Asked(view, *names).answers
    for rows in (1, 5):
        assert Asked(view, *names, rows=rows).answers == whole


def test_another_seed_draws_other_answers(view: Any) -> None:
    assert Asked(view, "base", seed=1)["base"] != Asked(view, "base", seed=2)["base"]


def test_a_prompt_that_leaves_no_room_is_told_with_the_numbers(view: Any) -> None:
    # Three marks beside the bytes of the text: the tiny model reads 512 tokens.
    long = Prompt(({"role": "user", "content": "x" * 500},))
    assert len(Asked(view, "base", prompts=[long], max_new_tokens=9, samples=1)["base"][0]) == 1
    with pytest.raises(UserError) as caught:
        Asked(view, "base", prompts=[PROMPTS[0], long], max_new_tokens=10, samples=1)
    assert str(caught.value) == (
        "`base` reads 512 tokens, and the longest prompt has 503 before 10 new ones; "
        "shorten the prompts or `max_new_tokens`"
    )


SLIDES = {"kind": "Mistral", "sliding_window": 8}
UNFIT = [
    (
        SLIDES,
        "prompt 2: 6 tokens and 3 new ones are more than the 8 positions that a layer of the model attends to (sliding "
        "window); shorten the prompt or lower max_new_tokens",
    ),
    (
        {"kind": "Mamba"},
        "MambaForCausalLM has linear_attention, a recurrent state, positions that cannot be given; this sampler needs "
        "a decoder whose layers all use plain attention",
    ),
]
SAMPLED = [
    "do: sample, from: base, prompts: prompts",
    "do: rrhf, from: base, data: prompts, reward: length, candidates: {by: beam, count: 2}",
    "do: rl, from: base, prompts: prompts, reward: length, samples: 2",
]


@pytest.mark.parametrize("fields", SAMPLED)
@pytest.mark.parametrize(("kind", "told"), UNFIT)
def test_a_model_that_cannot_be_sampled_from_is_told_with_its_name(
    tmp_path: Path, fields: str, kind: dict[str, Any], told: str
) -> None:
    letters.language_model(tmp_path / "model", **kind)
    tiny.write_lines(tmp_path / "prompts.jsonl", [{"prompt": "ab"}, {"prompt": "abcdef"}])
    view = stages.study(
        tmp_path,
        f"""models: {{base: {{source: ./model, precision: fp32}}}}
data: {{prompts: {{source: ./prompts.jsonl, format: prompt}}}}
rewards: {{length: {{kind: length}}}}
stages: {{made: {{{fields}, max_new_tokens: 3}}}}
""",
    )
    with pytest.raises(UserError) as caught:
        stages.build(view, "made")
    assert str(caught.value) == f"`base`: {told}"


def test_attention_that_the_sampler_cannot_mask_is_told_with_the_models_name() -> None:
    flash = transformers.LlamaForCausalLM(tiny.config())
    flash.config._attn_implementation_internal = "flash_attention_2"
    with pytest.raises(UserError, match=r"^`base`: LlamaForCausalLM runs `flash_attention_2` attention; load it with"):
        leave_room("base", flash, [[5]], 3)


def test_each_answer_is_scored_once(view: Any, calls: list[Any]) -> None:
    asked = Asked(view, "base", "bon[n=2]", "bon[n=4]")
    texts = [[*row, "one more", "one more"] for row in asked["bon[n=4]"]]
    # The evaluation that follows asks for the same scores under a reward of equal content.
    found = asked.scores.of(view.artifact("twin"), PROMPTS, texts)
    assert found == [[value(text) for text in row] for row in texts]
    assert asked.scores.of(view.artifact("score"), PROMPTS, texts) == found
    counts = Counter(itertools.chain(*calls))
    assert set(counts.values()) == {1}
    assert len(counts) == len(MESSAGES) * (8 + 1)
    assert {(m, text) for m, row in zip(MESSAGES, texts, strict=True) for text in row} <= counts.keys()


def test_scores_of_one_text_to_two_prompts_are_two(view: Any, calls: list[Any]) -> None:
    scores = Scores(Execution(), Log(lambda event: None))
    scores.of(view.artifact("score"), PROMPTS, [["same"]] * 3)
    assert [sorted(call) for call in calls] == [sorted((m, "same") for m in MESSAGES)]
    assert scores.of(view.artifact("score"), PROMPTS, [[], [], []]) == [[], [], []]
    assert len(calls) == 1


def test_a_rule_names_its_model_and_what_shapes_its_draws(view: Any) -> None:
    rule = rule_of(view.artifact("cool"))
    assert (rule.model.name, rule.temperature, rule.top_k, rule.top_p, rule.n) == ("base", 0.5, 20, 0.9, 1)
    best = rule_of(view.artifact("bon[n=4]"))
    assert (best.n, best.reward and best.reward.name) == (4, "score")
    assert best.source == rule_of(view.artifact("base")).source != rule.source
