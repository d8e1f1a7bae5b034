"""What a calibrated reward has to do with the stage that raises it, and how its transform is written."""

from __future__ import annotations

from pathlib import Path

import pytest
from refusals import refusals

HEAD = """\
version: 1
name: s
models: {base: {source: ./m}, other: {source: ./o}}
data:
  prompts: {source: ./p.jsonl, format: prompt}
  pairs: {source: ./q.jsonl, format: preference}
rewards: {joy: {kind: lexicon}}
stages:
  plain: {do: decode, method: sample, from: base}
  greedy: {do: decode, method: greedy, from: base}
  cold: {do: decode, method: sample, from: base, temperature: 0.5}
  few: {do: decode, method: sample, from: base, top_k: 4}
  nucleus: {do: decode, method: sample, from: base, top_p: 0.9}
  best: {do: decode, method: best_of_n, from: base, reward: joy, n: 2}
  rolls: {do: sample, from: other, prompts: prompts, max_new_tokens: 32, samples: 2}
"""
STAGES = {
    "rl": "do: rl, from: base, prompts: prompts, reward: cal, max_new_tokens: 32",
    "qrpo": "do: qrpo, from: base, data: rolls, reward: cal",
}


def problems(folder: Path, stage: str, reference: str = "base", longest: int = 32) -> list[str]:
    cal = f"do: calibrate, reward: joy, reference: {reference}, prompts: prompts, max_new_tokens: {longest}"
    return refusals(folder, f"{HEAD}  cal: {{{cal}}}\n  made: {{{stage}}}\n")


@pytest.mark.parametrize("stage", STAGES)
@pytest.mark.parametrize("reference", ["base", "plain"])
def test_a_reward_calibrated_under_the_model_that_training_starts_from_is_fine(
    tmp_path: Path, stage: str, reference: str
) -> None:
    assert problems(tmp_path, STAGES[stage], reference) == []


@pytest.mark.parametrize("stage", STAGES)
@pytest.mark.parametrize("reference", ["other", "cold", "few", "nucleus", "best"])
def test_one_calibrated_under_another_policy_is_refused(tmp_path: Path, stage: str, reference: str) -> None:
    assert problems(tmp_path, STAGES[stage], reference) == [
        f"stages.made.reward  `cal` ranks among rollouts of `{reference}`, and this stage starts from `base`, sampled at "
        "temperature 1 from the whole vocabulary; calibrate with `reference: base`"
    ]


def test_a_reward_is_not_calibrated_on_one_answer_given_again_and_again(tmp_path: Path) -> None:
    assert problems(tmp_path, "do: sft, from: base, data: pairs", "greedy") == [
        "stages.cal.reference  `greedy` gives one answer again and again, so its rollouts would all tie; name a policy "
        "that samples"
    ]


def test_samples_and_rollouts_are_equally_long(tmp_path: Path) -> None:
    assert problems(tmp_path, STAGES["rl"], longest=64) == [
        "stages.made.max_new_tokens  `cal` ranks among rollouts of at most 64 tokens, and here samples have at most 32; "
        "give both the same `max_new_tokens`"
    ]
    assert problems(tmp_path, STAGES["qrpo"], longest=64) == [
        "stages.made.data  `cal` ranks among rollouts of at most 64 tokens, and the answers of `rolls` have at most 32; "
        "give both the same `max_new_tokens`"
    ]
    assert problems(tmp_path, STAGES["qrpo"].replace("rolls", "pairs"), longest=64) == []


def test_so_are_pairs_of_samples_and_rewards_that_a_sum_holds(tmp_path: Path) -> None:
    def told(stage: str, more: str) -> list[str]:
        cal = "cal: {do: calibrate, reward: joy, reference: base, prompts: prompts, max_new_tokens: 64}"
        head = HEAD.replace(
            "joy: {kind: lexicon}", "joy: {kind: lexicon}, both: {kind: weighted, of: {joy: 1, cal: 2}}"
        )
        return refusals(tmp_path, f"{head}  {cal}\n  {more}\n  made: {{{stage}}}\n")

    labelled = "paired: {do: label, responses: rolls, reward: joy}"
    assert told(STAGES["qrpo"].replace("rolls", "paired"), labelled) == [
        "stages.made.data  `cal` ranks among rollouts of at most 64 tokens, and the answers of `rolls` have at most 32; "
        "give both the same `max_new_tokens`"
    ]
    assert told(STAGES["rl"].replace("cal", "both"), "") == [
        "stages.made.max_new_tokens  `cal` ranks among rollouts of at most 64 tokens, and here samples have at most 32; "
        "give both the same `max_new_tokens`"
    ]


def test_answers_to_one_part_of_a_split_are_not_ranked_by_what_was_calibrated_on_another(tmp_path: Path) -> None:
    def told(rolls: str, calibrated: str) -> list[str]:
        head = HEAD.replace("./p.jsonl, format: prompt", "./p.jsonl, format: prompt, split: {one: 4, two: 4}")
        head = head.replace("from: other, prompts: prompts", f"from: other, prompts: {rolls}")
        cal = f"do: calibrate, reward: joy, reference: base, prompts: {calibrated}, max_new_tokens: 32"
        return refusals(tmp_path, f"{head}  cal: {{{cal}}}\n  made: {{{STAGES['qrpo']}}}\n")

    assert told("prompts.one", "prompts.one") == []
    assert told("prompts.two", "prompts.one") == [
        "stages.made.data  `rolls` answers `prompts.two`, and `cal` was calibrated on `prompts.one`: each prompt needs a "
        "log-partition of its own; give both the same `prompts`"
    ]


def test_what_is_not_calibrated_or_not_there_is_said_once(tmp_path: Path) -> None:
    assert problems(tmp_path, STAGES["rl"].replace("cal", "joy"), "other") == []
    assert problems(tmp_path, STAGES["rl"].replace("from: base", "from: bose")) == [
        "stages.made.from  `bose` is not defined; did you mean `base`?"
    ]


@pytest.mark.parametrize("stage", STAGES)
@pytest.mark.parametrize("kind", ["best_of_n", "worst_of_n"])
def test_a_transform_for_many_draws_is_written_by_their_number_or_by_a_rate(
    tmp_path: Path, stage: str, kind: str
) -> None:
    for fields in ("n: 4", "t: 10", "t: 0.5"):
        assert problems(tmp_path, f"{STAGES[stage]}, transform: {{kind: {kind}, {fields}}}") == []
    wrong = "takes `n`, for the exact optimum, or else `t`, for the exponential"
    for fields in ("", ", n: 4, t: 10"):
        (line,) = problems(tmp_path, f"{STAGES[stage]}, transform: {{kind: {kind}{fields}}}")
        assert line == f"stages.made.transform  {wrong}"


def test_the_exact_optimum_is_one_for_a_weight_of_the_divergence(tmp_path: Path) -> None:
    free = f"{STAGES['rl']}, beta: 0"
    assert problems(tmp_path, f"{free}, transform: {{kind: best_of_n, t: 10}}") == []
    assert problems(tmp_path, f"{free}, transform: {{kind: worst_of_n, n: 4}}") == [
        "stages.made.beta  the optimum for `n` is one for a `beta` above 0; give one, or the transform `t` in place of `n`"
    ]
