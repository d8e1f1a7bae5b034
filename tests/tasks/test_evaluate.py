"""The comparison itself on tiny models: against whom, on which draws, paired how, and under which names."""

from __future__ import annotations

import itertools
import json
import shutil
from collections.abc import Callable
from pathlib import Path
from statistics import fmean
from typing import Any

import numpy as np
import pytest
import stages
import tiny

from registry.methods.best_of_n import kl_bound
from registry.methods.comparison import best_of_n_win_rates, interval
from registry.methods.repetition import diversity
from registry.methods.significance import FEWEST, holm, minimum_detectable_effect, permutation_p
from tasks.evaluation_table import generations, named

STAGES = """\
models: {{base: {{source: ./model, precision: fp32}}, other: {{source: ./other, precision: fp32}}}}
data: {{prompts: {{source: ./prompts.jsonl, format: prompt}}}}
rewards:
  words: {{kind: length}}
  asked: {{kind: python, target: rewards_of_the_test:asked}}
  letters: {{kind: python, target: rewards_of_the_test:letters}}
stages:
  greedy: {{do: decode, method: greedy, from: base}}
  again: {{do: decode, method: greedy, from: base}}
  bon: {{do: decode, method: best_of_n, from: base, reward: letters, n: 4}}
  table:
    do: evaluate
    policies: {policies}
    against: {against}
    prompts: prompts
    rewards: {rewards}
    budget: {{max_new_tokens: 12, samples_per_prompt: {samples}}}
    resamples: 300
    seed: {seed}
"""
REWARDS = """\
def asked(prompts, responses):
    return [float(len(p)) for p in prompts]

def letters(prompts, responses):
    return [float(sum(c.isascii() and c.isalpha() for c in r)) for r in responses]
"""
PROMPTS = [f"Tell me of {'a very ' * i}long number {i}." for i in range(8)]

Evaluate = Callable[..., stages.Built]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("evaluate")
    tiny.language_model(folder / "model")
    tiny.language_model(folder / "other", seed=1)
    tiny.write_lines(folder / "prompts.jsonl", [{"prompt": text} for text in PROMPTS])
    (folder / "rewards_of_the_test.py").write_text(REWARDS)
    return folder


@pytest.fixture(scope="module")
def evaluate(folder: Path) -> Evaluate:
    """Builds an evaluation; equal ones are built again, each in a place of its own."""
    numbers = itertools.count()

    def built(
        policies: str = "[base, bon]",
        against: str = "base",
        rewards: str = "[letters]",
        samples: int = 2,
        seed: int = 5,
        rename: tuple[str, str] = ("", ""),
        extra: tuple[str, str] = ("", ""),
        into: str = "",
        **execution: int,
    ) -> stages.Built:
        text = STAGES.format(policies=policies, against=against, rewards=rewards, samples=samples, seed=seed)
        for old, new in (rename, extra):
            text = text.replace(old, new) if old else text
        return stages.build(
            stages.study(folder, text),
            "table",
            folder / (into or f"{next(numbers)}"),
            **execution,
        )

    return built


def results(built: stages.Built) -> Any:
    return json.loads((built.folder / "evaluation.json").read_text())


def table(built: stages.Built) -> dict[str, dict[str, Any]]:
    return {row["policy"]: row for row in named(built.artifact).rows()}


def values(built: stages.Built, policy: int, reward: int = 0) -> np.ndarray:
    """`[prompt, sample]` of a policy's rewards, out of the generation table alone."""
    lines = (built.folder / "generations.jsonl").read_text().splitlines()
    rows = [row for row in map(json.loads, lines) if row["policy"] == policy]
    found = [[r["rewards"][reward] for r in rows if r["prompt"][0]["content"] == text] for text in PROMPTS]
    return np.array(found)


def test_a_policy_against_itself_wins_half_and_differs_by_nothing(evaluate: Evaluate) -> None:
    row = table(evaluate("[base]", samples=3))["base"]
    assert (row["win_rate"], row["win_rate_low"], row["win_rate_high"]) == (0.5, 0.5, 0.5)
    assert (row["difference"], row["difference_low"], row["difference_high"]) == (0, 0, 0)
    assert row["reward_low"] < row["reward"] < row["reward_high"]


def test_greedy_against_greedy_ties_everywhere(evaluate: Evaluate) -> None:
    rows = table(evaluate("[greedy, again, base]", against="again"))
    for name in ("greedy", "again"):
        assert rows[name]["win_rate"] == rows[name]["win_rate_low"] == rows[name]["win_rate_high"] == 0.5
        assert rows[name]["difference"] == rows[name]["difference_high"] == 0
    assert rows["base"]["difference"] != 0
    assert all(row["against"] in ("greedy", "again") for row in rows.values())


def test_the_reference_need_not_be_among_the_policies(evaluate: Evaluate) -> None:
    within, beside = evaluate("[bon, greedy, base]"), evaluate("[bon, greedy]")
    # It is judged all the same, and comes last.
    assert results(beside) == results(within)
    assert results(beside)["reference"] == 2
    evaluation = named(beside.artifact)
    assert evaluation.policies == ("bon", "greedy", "base")
    assert evaluation.reference == "base"
    assert evaluation.metric("base", "win_rate.letters") == 0.5
    first = evaluate("[base, bon, greedy]")
    assert results(first)["reference"] == 0
    assert table(first) == table(within)


def test_a_reference_that_is_one_of_the_policies_by_content_is_not_judged_twice(evaluate: Evaluate) -> None:
    built = evaluate("[base, greedy]", against="again")
    assert len(results(built)["policies"]) == 2
    assert named(built.artifact).reference == "greedy"


def test_a_prompt_that_comes_twice_is_asked_once(evaluate: Evaluate, folder: Path) -> None:
    """The prompt is the unit of every interval: as two, the same numbers would look surer than they are."""
    repeated = folder / "repeated.jsonl"
    tiny.write_lines(repeated, [{"prompt": text} for text in (*PROMPTS, *PROMPTS[:3])])
    twice = evaluate("[bon]", extra=("./prompts.jsonl", "./repeated.jsonl"))
    assert results(twice) == results(evaluate("[bon]"))
    assert ("note", "prompts: 3 of 11 prompts repeat one before, and are asked once") in twice.events


def test_every_figure_can_be_had_again_from_the_generation_table(evaluate: Evaluate) -> None:
    built = evaluate("[bon, greedy]", rewards="[letters, words]")
    for policy, reward in itertools.product(range(3), range(2)):
        ours, theirs = values(built, policy, reward), values(built, 2, reward)
        assert ours.shape == (8, 2)
        found = results(built)["policies"][policy]["rewards"][reward]
        assert found["reward"]["estimate"] == pytest.approx(ours.mean())
        assert found["difference"]["estimate"] == pytest.approx(ours.mean() - theirs.mean())
        wins = [
            fmean((mine[s] > its[t]) + (mine[s] == its[t]) / 2 for s, t in ((0, 1), (1, 0)))
            for mine, its in zip(ours, theirs, strict=True)
        ]
        assert found["win_rate"]["estimate"] == pytest.approx(fmean(wins))


def test_a_difference_is_taken_prompt_by_prompt_and_its_interval_too(evaluate: Evaluate) -> None:
    built = evaluate("[bon, other]", samples=2)
    for policy in range(2):
        by_prompt = values(built, policy).mean(axis=1) - values(built, 2).mean(axis=1)
        assert np.ptp(by_prompt) > 0
        expected = interval(by_prompt, confidence=0.95, resamples=300, seed=5)._asdict()
        expected["p"] = permutation_p(by_prompt, resamples=300, seed=5)
        found = results(built)["policies"][policy]["rewards"][0]["difference"]
        assert {what: found[what] for what in expected} == pytest.approx(expected)
        assert "detectable" not in found, "so few prompts find less than a t test does"


def test_of_prompts_enough_it_is_told_what_they_would_have_found(evaluate: Evaluate, folder: Path) -> None:
    texts = [*PROMPTS, *(f"Why {i}?" for i in range(FEWEST - len(PROMPTS)))]
    tiny.write_lines(folder / "more.jsonl", [{"prompt": text} for text in texts])
    built = evaluate("[bon]", extra=("./prompts.jsonl", "./more.jsonl"))
    lines = map(json.loads, (built.folder / "generations.jsonl").read_text().splitlines())
    rewards = np.array([row["rewards"][0] for row in sorted(lines, key=lambda row: row["policy"])]).reshape(2, -1, 2)
    difference = rewards[0].mean(axis=1) - rewards[1].mean(axis=1)
    found = table(built)["bon"]["detectable"]
    assert found == pytest.approx(minimum_detectable_effect(difference, confidence=0.95))


def test_the_reference_is_no_comparison_and_all_others_are_counted(evaluate: Evaluate) -> None:
    built = evaluate("[bon, other, greedy]")
    found = [policy["rewards"][0]["difference"] for policy in results(built)["policies"]]
    assert [d.get("p_holm") for d in found[:3]] == holm([d["p"] for d in found[:3]])
    assert "p" not in found[3] and "p" not in table(built)["base"]
    assert named(built.artifact).metrics()["bon/p_holm/letters"] == found[0]["p_holm"]


def test_what_the_prompts_share_cancels(evaluate: Evaluate) -> None:
    row = table(evaluate("[other]", rewards="[asked]"))["other"]
    # The reward is the prompt's length: as wide an interval as can be, but no difference between the policies.
    assert row["reward_high"] - row["reward_low"] > 10
    assert (row["difference_low"], row["difference"], row["difference_high"]) == (0, 0, 0)
    assert (row["win_rate_low"], row["win_rate"], row["win_rate_high"]) == (0.5, 0.5, 0.5)


def test_best_of_n_is_never_below_its_model_under_the_reward_that_chose(evaluate: Evaluate) -> None:
    built = evaluate("[base, bon]", samples=2)
    gained = values(built, 1) - values(built, 0)
    # Sample by sample: the plain answer is the first of the four that best-of-4 chose from.
    assert (gained >= 0).all() and gained.sum() > 0
    assert table(built)["bon"]["difference"] == pytest.approx(gained.mean())


def test_what_a_study_calls_its_policies_changes_no_byte(evaluate: Evaluate) -> None:
    one = evaluate("[base, bon, greedy]", rewards="[letters, words]")
    other = evaluate("[base, bon, greedy]", rewards="[letters, words]", rename=("bon", "a_policy_of_another_name"))
    third = evaluate("[base, bon, greedy]", rewards="[letters, words]", rename=("base", "zed"))
    assert one.artifact.fingerprint == other.artifact.fingerprint == third.artifact.fingerprint
    for name in ("evaluation.json", "generations.jsonl"):
        texts = {(built.folder / name).read_bytes() for built in (one, other, third)}
        assert len(texts) == 1
    assert named(other.artifact).policies == ("base", "a_policy_of_another_name", "greedy")


def test_the_order_of_policies_and_of_rewards_changes_no_figure(evaluate: Evaluate) -> None:
    one, other = evaluate("[base, bon, greedy]"), evaluate("[greedy, bon, base]")
    assert table(one) == table(other)
    both = evaluate("[base, bon, greedy]", rewards="[words, letters]")
    judged = [row for row in named(both.artifact).rows() if row["judged_by"] == "letters"]
    assert {row["policy"]: row for row in judged} == table(one)


def test_equal_seeds_give_equal_bytes_and_other_seeds_do_not(evaluate: Evaluate) -> None:
    one, same, other = evaluate(seed=5), evaluate(seed=5, rows=3), evaluate(seed=6)
    for name in ("evaluation.json", "generations.jsonl"):
        assert (one.folder / name).read_bytes() == (same.folder / name).read_bytes()
        assert (one.folder / name).read_bytes() != (other.folder / name).read_bytes()


def test_resampling_has_the_seed_and_sampling_the_rest(evaluate: Evaluate) -> None:
    """A greedy policy's answers do not depend on the seed, so only the ends of its intervals may."""
    one, other = (results(evaluate("[greedy]", seed=seed))["policies"][0]["rewards"][0] for seed in (5, 6))
    assert one["reward"]["estimate"] == other["reward"]["estimate"]
    assert (one["reward"]["low"], one["reward"]["high"]) != (other["reward"]["low"], other["reward"]["high"])


def test_lengths_and_endings_are_counted_over_all_samples(evaluate: Evaluate) -> None:
    built = evaluate("[base]", samples=3)
    rows = [json.loads(line) for line in (built.folder / "generations.jsonl").read_text().splitlines()]
    row = table(built)["base"]
    assert len(rows) == 8 * 3
    assert row["length"] == pytest.approx(fmean(r["tokens"] for r in rows))
    assert row["finished"] == pytest.approx(fmean(r["finished"] for r in rows))
    assert all(r["finished"] or r["tokens"] == 12 for r in rows)
    assert (row["prompts"], row["samples_per_prompt"]) == (8, 3)


def test_the_generation_table_names_policies_and_rewards(evaluate: Evaluate) -> None:
    built = evaluate("[bon]", rewards="[letters, words]")
    evaluation = named(built.artifact)
    rows = list(generations(built.artifact, evaluation.policies, evaluation.rewards))
    assert [(r["prompt"], r["policy"], r["sample"]) for r in rows[:5]] == [
        (PROMPTS[0], "bon", 0), (PROMPTS[0], "bon", 1), (PROMPTS[0], "base", 0), (PROMPTS[0], "base", 1),
        (PROMPTS[1], "bon", 0),
    ]  # fmt: skip
    for row in rows:
        assert row["reward.words"] == len(row["response"].split())
        assert row["reward.letters"] == sum(c.isascii() and c.isalpha() for c in row["response"])


def test_a_reward_may_be_called_as_a_column_is(evaluate: Evaluate) -> None:
    built = evaluate("[bon]", rewards="[letters, tokens]", rename=("words: {", "tokens: {"))
    evaluation = named(built.artifact)
    (row, *_) = generations(built.artifact, evaluation.policies, evaluation.rewards)
    assert (row["tokens"], row["reward.tokens"]) == (12, len(row["response"].split()))


def test_greedy_policies_need_one_sample_only(evaluate: Evaluate) -> None:
    rows = table(evaluate("[greedy, base]", against="again", samples=1))
    assert rows["greedy"]["win_rate"] == 0.5
    assert rows["base"]["win_rate"] != 0.5


def test_what_judges_from_outside_does_not_choose_though_it_is_named_first(evaluate: Evaluate) -> None:
    """Among the draws of the base, which has no reward, the one that guides the other policy chooses."""
    built = evaluate("[base, bon]", rewards="[words, letters]")
    found = named(built.artifact)
    assert found.chooser == "letters"
    drawn = {r["judged_by"]: r["reward"] for r in found.best_of() if r["policy"] == "base" and r["n"] == 2}
    words, letters = (values(built, 0, reward) for reward in (0, 1))
    assert drawn["letters"] == pytest.approx(letters.max(axis=1).mean())
    assert drawn["words"] == pytest.approx(words[np.arange(8), letters.argmax(axis=1)].mean())
    assert named(evaluate("[base, greedy]", rewards="[words, letters]").artifact).chooser == "words"


def test_where_all_differences_are_equal_nothing_is_said_of_what_could_have_been_found(evaluate: Evaluate) -> None:
    (greedy, *_) = results(evaluate("[greedy, other]", against="again", rewards="[asked]"))["policies"][1:]
    assert greedy["rewards"][0]["difference"]["p"] == 1
    assert "detectable" not in greedy["rewards"][0]["difference"]


def test_a_policy_that_chooses_is_told_for_every_number_of_its_draws(evaluate: Evaluate) -> None:
    """From the eight draws that two samples of best-of-four look at; the rule of the worst goes down."""
    built = evaluate("[base, bon]", rewards="[letters, words]")
    told = list(named(built.artifact).best_of())
    rows = [row for row in told if row["policy"] == "bon"]
    letters = [row["reward"] for row in rows if row["judged_by"] == "letters"]
    assert [row["n"] for row in rows] == [*range(1, 9), *range(1, 9)]
    assert letters == sorted(letters) and letters[0] < letters[-1]
    chosen = values(built, 1)  # of four draws each, so of all eight the better of the two is the best
    assert letters[-1] == pytest.approx(chosen.max(axis=1).mean())
    worst = evaluate("[base, bon]", rename=("method: best_of_n", "method: worst_of_n"))
    # The base has no reward of its own: the first that judges chooses between its two draws.
    base = [row["reward"] for row in told if (row["policy"], row["judged_by"]) == ("base", "letters")]
    assert base == pytest.approx([values(built, 0).mean(), values(built, 0).max(axis=1).mean()])
    falling = [row["reward"] for row in named(worst.artifact).best_of() if row["policy"] == "bon"]
    assert falling == sorted(falling, reverse=True) and falling[0] == pytest.approx(letters[0])


def test_policies_are_put_behind_best_and_worst_of_n_with_the_judging_reward_choosing(evaluate: Evaluate) -> None:
    procedures = "inference: [{method: best_of_n, n: 2}, {method: worst_of_n, n: 2}]"
    built = evaluate("[base, bon]", samples=4, rename=("resamples: 300", f"resamples: 300\n    {procedures}"))
    evaluation = named(built.artifact)
    rows = {row["policy"]: row for row in evaluation.rows()}
    base, bon = values(built, 0), values(built, 1)
    assert evaluation.inference == ["best_of_2_win_rate", "worst_of_2_win_rate"]
    assert rows["bon"]["best_of_2_win_rate"] == pytest.approx(best_of_n_win_rates(bon, base, 2).mean())
    assert rows["bon"]["worst_of_2_win_rate"] == pytest.approx(1 - best_of_n_win_rates(-bon, -base, 2).mean())
    assert rows["base"]["best_of_2_win_rate"] == rows["base"]["worst_of_2_win_rate"] == pytest.approx(0.5)
    assert evaluation.metric("bon", "best_of_2_win_rate.letters") == rows["bon"]["best_of_2_win_rate"] > 0.5
    assert evaluation.metrics()["bon/worst_of_2_win_rate_low/letters"] == rows["bon"]["worst_of_2_win_rate_low"]


def test_a_reward_that_chooses_is_told_apart_from_one_that_only_judges(evaluate: Evaluate) -> None:
    rows = list(named(evaluate("[base, bon]", rewards="[letters, words]").artifact).rows())
    parts = {(row["policy"], row["judged_by"]): row["reward_had_part"] for row in rows}
    assert parts == {
        ("base", "letters"): "held out", ("base", "words"): "held out",
        ("bon", "letters"): "guides", ("bon", "words"): "held out",
    }  # fmt: skip


def test_every_policy_is_measured_from_the_model_of_the_reference(evaluate: Evaluate) -> None:
    built = evaluate("[base, other, greedy, bon]", against="bon")
    evaluation = named(built.artifact)
    assert {name: kl and kl[0] for name in evaluation.policies for kl in [evaluation.kl(name)]} == {
        "base": "rao_blackwell", "other": "rao_blackwell", "greedy": "point_mass", "bon": "best_of_n",
    }  # fmt: skip
    rows = {row["policy"]: row for row in evaluation.policy_rows()}
    assert rows["base"]["kl_rao_blackwell"] == pytest.approx(0, abs=1e-4)
    assert 0 < rows["other"]["kl_rao_blackwell_low"] < rows["other"]["kl_rao_blackwell"]
    assert rows["bon"]["kl_bound"] == pytest.approx(kl_bound(4), abs=1e-4)
    # Of the base's own answers this is its entropy rate; another model's are more surprising.
    assert 1 < rows["base"]["perplexity_own"] < rows["other"]["perplexity_own"]


def test_an_answer_costs_what_was_drawn_for_it_and_not_what_others_drew_beside_it(evaluate: Evaluate) -> None:
    built = evaluate("[base, bon, greedy]")
    cost = {
        name: policy["cost"] for name, policy in zip(("base", "bon", "greedy"), results(built)["policies"], strict=True)
    }
    prompt = cost["base"]["prompt_positions"]
    assert prompt == cost["bon"]["prompt_positions"] == cost["greedy"]["prompt_positions"] > 8
    lines = map(json.loads, (built.folder / "generations.jsonl").read_text().splitlines())
    lengths: dict[int, list[int]] = {}
    for row in lines:
        lengths.setdefault(row["policy"], []).append(row["tokens"])
    assert cost["base"]["tokens"] == cost["base"]["decode_positions"] + 1 == pytest.approx(fmean(lengths[0]))
    assert (cost["base"]["texts_scored"], cost["bon"]["texts_scored"]) == (0, 4)
    assert cost["bon"]["decode_positions"] == cost["bon"]["tokens"] - 4
    assert 2 * cost["base"]["tokens"] < cost["bon"]["tokens"] <= 4 * 12
    # One answer serves all samples, and is asked for once.
    assert cost["greedy"]["tokens"] == cost["greedy"]["decode_positions"] + 1 == pytest.approx(fmean(lengths[2]))
    spent = json.loads((built.folder / "measured.json").read_text())
    assert 0 < spent[0]["seconds"] < spent[1]["seconds"] and spent[0]["memory"] > 50e6
    assert 0 < spent[0]["device_seconds"] < spent[1]["device_seconds"]


def test_what_answers_are_like_is_read_off_them(evaluate: Evaluate) -> None:
    built = evaluate("[base]")
    lines = map(json.loads, (built.folder / "generations.jsonl").read_text().splitlines())
    rows = list(lines)
    (row,) = named(built.artifact).policy_rows()
    assert row["diversity"] == pytest.approx(fmean(diversity(r["response"], "paper") for r in rows))
    assert row["truncated"] == pytest.approx(fmean(not r["finished"] for r in rows))


def test_the_perplexity_of_given_answers_is_that_of_the_model_that_reads_them(evaluate: Evaluate, folder: Path) -> None:
    tiny.write_lines(folder / "given.jsonl", tiny.TEN)
    pairs = "prompts.jsonl, format: prompt}, given: {source: ./given.jsonl, format: preference}"
    place = ("prompts.jsonl, format: prompt}", pairs)
    text = "resamples: 300"
    built = evaluate("[base, other, bon]", rename=place, extra=(text, f"{text}\n    perplexity_of: given"))
    base, other, bon = named(built.artifact).policy_rows()
    assert (
        base["perplexity_given"] != other["perplexity_given"]
        and base["perplexity_given_low"] < base["perplexity_given"]
    )
    assert "perplexity_given" not in bon, "a rule over a model has no probability of its own for a given answer"


def test_one_policy_under_two_names_is_one_comparison_and_no_second_seed(evaluate: Evaluate) -> None:
    found = results(evaluate("[bon, greedy, again]"))
    differences = [policy["rewards"][0]["difference"] for policy in found["policies"][:3]]
    assert [d["p_holm"] for d in differences] == [
        *holm([differences[0]["p"], differences[1]["p"]]),
        differences[1]["p_holm"],
    ]
    assert found["over_seeds"] == []
    same = results(evaluate("[again, base]", against="greedy"))["policies"][0]["rewards"][0]["difference"]
    assert "p" not in same and same["estimate"] == 0


def test_a_killed_evaluation_draws_nothing_again(
    evaluate: Evaluate, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    undisturbed = evaluate("[base, bon, other]")
    with monkeypatch.context() as patched:
        patched.setattr("tasks.evaluate.measured", lambda *_: 1 / 0)
        with pytest.raises(ZeroDivisionError):
            evaluate("[base, bon, other]", into="killed")
    shutil.rmtree(folder / "killed")  # what a process that died had built goes; its scratch stays
    again = evaluate("[base, bon, other]", into="killed")
    assert undisturbed.finished("responses") and not again.finished("responses")
    assert results(again) == results(undisturbed)
