"""RRHF as a stage: where its candidates come from, what its loss makes of them, and what is learnt."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import stages
import tiny
import torch
from deaths import dies, dying
from stages import apart
from textbook import (
    LONG,
    LORA,
    METHODS,
    PAIRS,
    SHORT,
    STILL,
    Lab,
    answer_ids,
    candidates,
    log_probs,
    mean,
    prompt_ids,
    rrhf_by_hand,
    rrhf_loss,
    texts,
    told_apart,
)

from registry.dialogue_text import decode_answer
from registry.rows import Prompt
from specs.problems import UserError
from tasks import train_rrhf
from tasks.beam import beam_search
from tasks.sampler import sample

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def lab(tmp_path_factory: pytest.TempPathFactory) -> Lab:
    return Lab(tmp_path_factory.mktemp("lab"))


@pytest.mark.parametrize(("sft", "weight"), [("sum", 1.0), ("mean", 2.5), ("official_code", 0.0)])
def test_the_loss_of_rrhf_is_the_papers(lab: Lab, sft: str, weight: float) -> None:
    built = lab.train(f"{METHODS['rrhf']}, {STILL}, {LORA}, sft_term: {sft}, rank_weight: {weight}")
    rows = candidates(built)
    assert len(rows) == 11 and {len(answers) for _, answers in rows} == {6}
    assert {finished for _, answers in rows for _, finished, _ in answers} == {True, False}
    causal = lab.causal()
    found = [rrhf_by_hand(causal, prompt_ids(prompt), answers, weight, sft) for prompt, answers in rows]
    assert built.metrics["train/first_loss"] == pytest.approx(mean([loss for loss, _ in found]), rel=1e-5)
    ranking = mean([part for _, part in found])
    assert ranking > 1
    assert built.logged("train/ranking_loss") == [(1, pytest.approx(ranking, rel=1e-5))]


def test_prompts_have_as_many_candidates_as_there_are_different_texts(lab: Lab) -> None:
    pairs = [
        *({"prompt": "Many", "chosen": f"x{i}", "rejected": "y" * (i + 1)} for i in range(3)),  # six
        {"prompt": "Two", "chosen": "good", "rejected": "bad"},
        {"prompt": "Many", "chosen": "x0", "rejected": "y"},  # two again
    ]
    lab.write("uneven", pairs)
    built = lab.train(
        f"do: rrhf, from: base, data: pairs, reward: letters, candidates: {{by: data}}, {STILL}, {LORA}", pairs="uneven"
    )
    assert texts(built) == [["x0", "y", "x1", "yy", "x2", "yyy"], ["good", "bad"]]
    assert built.metrics["prompts"] == 2 and built.metrics["candidates_per_prompt"] == 4
    # Of the first six, x0, y, x1 and x2 have one letter: three ties.
    assert built.metrics["tied"] == 1.5
    assert built.metrics["reward_best"] == (3 + 4) / 2
    assert built.metrics["reward"] == (9 + 7) / 8
    assert built.metrics["train/first_loss"] == pytest.approx(rrhf_loss(lab.causal(), candidates(built)), rel=1e-5)


def test_candidates_of_equal_rewards_are_not_ranked_and_the_first_is_learnt(lab: Lab) -> None:
    lab.write("equal", [{"prompt": "Two", "chosen": "good", "rejected": "bad"}])
    fields = "do: rrhf, from: base, data: pairs, reward: words, candidates: {by: data}"
    built = lab.train(f"{fields}, {STILL}, {LORA}", pairs="equal")
    assert built.logged("train/ranking_loss") == [(1, 0)]
    (total,) = log_probs(lab.causal(), prompt_ids("Two"), [answer_ids("good", True)])
    assert built.metrics["train/first_loss"] == pytest.approx(-total, rel=1e-5)
    assert built.metrics["tied"] == 1


def test_rewards_that_fp32_cannot_tell_apart_are_ranked(lab: Lab) -> None:
    built = lab.train(f"do: rrhf, from: base, data: pairs, reward: large, candidates: {{by: data}}, {STILL}, {LORA}")
    rows = candidates(built)
    assert {reward for _, answers in rows for *_, reward in answers} == {2.0**24, 2.0**24 + 1}
    assert built.metrics["train/first_loss"] == pytest.approx(rrhf_loss(lab.causal(), rows), rel=1e-5)


def drew(into: Path, rows: list[list[tuple[str, bool]]], name: str = "samples") -> None:
    """Leaves what a stage has drawn before its process died."""
    scratch = into.with_name(f"{into.name}.scratch")
    scratch.mkdir()
    drawn = [[{"text": text, "ids": [0, 0, 0], "finished": finished} for text, finished in row] for row in rows]
    tiny.write_lines(scratch / f"{name}.jsonl", drawn)


def test_a_text_counts_once_and_an_empty_one_not_at_all(lab: Lab) -> None:
    lab.write("few", [PAIRS[0], PAIRS[1]])
    into = lab.place()
    drew(into, [[("", False), ("new", False), ("ab!", True), ("new", True)], [("", True), ("", False)]])
    built = lab.train(f"{METHODS['rrhf']}, {STILL}, {LORA}", into, pairs="few")
    (_, first), (_, second) = candidates(built)
    assert [(text, finished) for text, finished, _ in first] == [("new", False), ("ab!", True), ("cd? 0", True)]
    assert [text for text, *_ in second] == ["abab!", "cd? 1cd? 1"]


def test_of_equally_good_candidates_the_first_drawn_is_learnt_though_its_text_comes_again(lab: Lab) -> None:
    lab.write("few", [PAIRS[0]])
    into = lab.place()
    drew(into, [[("first", True), ("other", True), ("first", True)]])
    fields = "do: rrhf, from: base, data: pairs, reward: words, candidates: {by: sample, data: false}"
    built = lab.train(f"{fields}, {STILL}, {LORA}", into, pairs="few")
    assert texts(built) == [["first", "other"]]
    (total,) = log_probs(lab.causal(), prompt_ids("Number 0"), [answer_ids("first", True)])
    assert built.metrics["train/first_loss"] == pytest.approx(-total, rel=1e-5)


def test_an_unfinished_answer_is_given_no_end(lab: Lab) -> None:
    lab.write("few", [PAIRS[0]])
    losses = []
    for finished in (True, False):
        into = lab.place()
        drew(into, [[("zz", finished), ("aa", True)]])
        fields = "do: rrhf, from: base, data: pairs, reward: points, candidates: {by: sample, data: false}"
        losses.append(lab.train(f"{fields}, {STILL}, {LORA}", into, pairs="few").metrics["train/first_loss"])
    rewards = [sum(text.encode()) % 97 / 7 for text in ("zz", "aa")]
    for loss, finished in zip(losses, (True, False), strict=True):
        answers = [("zz", finished, rewards[0]), ("aa", True, rewards[1])]
        assert loss == pytest.approx(rrhf_loss(lab.causal(), [("Number 0", answers)]), rel=1e-5)
    assert abs(losses[0] - losses[1]) > 0.1


def test_prompts_without_two_different_candidates_are_nothing_to_rank(lab: Lab) -> None:
    alike = "{by: sample, count: 3, top_p: 1e-6}"
    with pytest.raises(UserError, match=r"^no prompt has two different candidates, so there is nothing to rank"):
        lab.train(f"do: rrhf, from: base, data: prompts, reward: words, max_new_tokens: 3, candidates: {alike}")


def greedy(lab: Lab, prompt: list[int], tokens: int) -> list[int]:
    found: list[int] = []
    causal = lab.causal()
    while len(found) < tokens and 1 not in found:
        with torch.inference_mode():
            found.append(int(causal(torch.tensor([prompt + found])).logits[0, -1].argmax()))
    return found


def test_a_narrow_nucleus_draws_the_most_probable_answer_again_and_again(lab: Lab) -> None:
    fields = "do: rrhf, from: base, data: pairs, reward: points, max_new_tokens: 3"
    built = lab.train(f"{fields}, candidates: {{by: sample, count: 3, top_p: 1e-6}}, {STILL}, {LORA}")
    for prompt, answers in candidates(built):
        likeliest = decode_answer(tiny.tokenizer(), greedy(lab, prompt_ids(prompt), 3))
        assert [text for text, *_ in answers[:-2]] == [likeliest] * bool(likeliest)
    wide = lab.train(f"{fields}, candidates: {{by: sample, count: 3}}, {STILL}, {LORA}")
    assert mean([len(row) for row in texts(wide)]) > 4


@pytest.mark.parametrize(
    ("how", "search"),
    [
        ("{by: beam, count: 3}", {"beams": 3}),
        ("{by: diverse_beam, count: 3}", {"beams": 3, "groups": 3, "diversity": 1.0, "temperature": 0.8}),
        ("{by: diverse_beam, count: 3, diversity: 4.0, temperature: 2.0, data: false}",
         {"beams": 3, "groups": 3, "diversity": 4.0, "temperature": 2.0}),
    ],
)  # fmt: skip
def test_beams_are_those_of_the_search_with_the_datas_answers_behind_them(
    lab: Lab, how: str, search: dict[str, Any]
) -> None:
    # Fewer rows than beams: a search has a row for each of its beams all the same.
    built = lab.train(f"{METHODS['rrhf']}, candidates: {how}, {STILL}, {LORA}", rows=2)
    found = beam_search(lab.causal(), [prompt_ids(p["prompt"]) for p in PAIRS], max_new_tokens=5, eos_ids=[1], **search)
    given = "data: false" not in how
    for (prompt, answers), beams, pair in zip(candidates(built), found, PAIRS, strict=True):
        assert prompt == pair["prompt"]
        expected = {decode_answer(tiny.tokenizer(), b.ids): b.finished for b in reversed(beams)}
        expected = dict(reversed(expected.items())) | ({pair[s]: True for s in ("chosen", "rejected")} if given else {})
        expected.pop("", None)
        assert {text: finished for text, finished, _ in answers} == expected
        assert len(answers) == len(expected)


def test_prompts_alone_have_only_drawn_candidates(lab: Lab) -> None:
    built = lab.train(f"do: rrhf, from: base, data: prompts, reward: points, max_new_tokens: 5, {STILL}, {LORA}")
    assert texts(built) == distinct(drawn(lab.causal(), "rrhf round 1"))


def drawn(causal: Any, stream: str) -> list[list[str]]:
    """Four samples to each prompt out of one stream of random numbers."""
    encoded = [prompt_ids(pair["prompt"]) for pair in PAIRS]
    keys = [f"{Prompt(({'role': 'user', 'content': pair['prompt']},)).id}/0/{stream}" for pair in PAIRS]
    found = sample(causal, encoded, keys=keys, samples=4, seed=3, max_new_tokens=5, eos_ids=[1])
    return [[decode_answer(tiny.tokenizer(), s.ids) for s in row] for row in found]


def distinct(rows: list[list[str]]) -> list[list[str]]:
    return [list(dict.fromkeys(text for text in row if text)) for row in rows]


def test_each_round_draws_anew_from_the_model_of_the_round_before(lab: Lab) -> None:
    fields = "do: rrhf, from: base, data: prompts, reward: points, max_new_tokens: 5, rounds: 2"
    view = lab.study(f"  made: {{{fields}, learning_rate: 1e-2, batch_size: 16, {LORA}}}\n")
    first, second = (stages.build(view, name) for name in ("made[round=1]", "made"))
    model = lab.causal(first)
    assert texts(first) == distinct(drawn(lab.causal(), "rrhf round 1"))
    assert texts(second) == distinct(drawn(model, "rrhf round 2"))
    # Neither the random numbers nor the model are those of the first round.
    others = [drawn(lab.causal(), "rrhf round 2"), drawn(model, "rrhf round 1")]
    assert texts(second) not in map(distinct, others)
    # It is the model of the round before that is trained further.
    for built, start in ((first, lab.causal()), (second, model)):
        assert built.metrics["train/first_loss"] == pytest.approx(rrhf_loss(start, candidates(built)), rel=1e-4)


@pytest.mark.parametrize("how", ["sample", "beam"])
def test_what_was_drawn_before_a_death_is_taken_up_again(lab: Lab, how: str) -> None:
    fields = f"{METHODS['rrhf']}, candidates: {{by: {how}}}, learning_rate: 1e-3, batch_size: 4, {LORA}"
    whole = lab.train(fields)
    into = lab.place()
    with dying(into) as patch:
        patch.setattr(train_rrhf, "scored", dies)
        lab.train(fields, into)
    resumed = lab.train(fields, into)
    assert ("note", "the samples of the run before are taken up") in resumed.events
    counted = "responses" if how == "sample" else "prompts"
    assert whole.finished(counted) and not resumed.finished(counted)
    assert candidates(resumed) == candidates(whole)
    assert apart(resumed, whole) == 0


def test_a_prompt_whose_longest_candidate_does_not_fit_is_dropped_and_counted(lab: Lab) -> None:
    lab.write("long", [SHORT, LONG])
    fields = f"do: rrhf, from: base, data: pairs, reward: letters, candidates: {{by: data}}, {STILL}, {LORA}"
    for limit, prompts in ((53, 1), (54, 2)):
        built = lab.train(f"{fields}, max_length: {limit}", pairs="long")
        assert (built.metrics["prompts"], built.metrics["dropped_too_long"]) == (prompts, 2 - prompts)
        # What is said of rewards is said of the prompts that are left.
        assert built.metrics["reward_best"] == mean([2, 20][:prompts])
        rows = candidates(built)
        assert len(rows) == 2
        assert built.metrics["train/first_loss"] == pytest.approx(rrhf_loss(lab.causal(), rows[:prompts]), rel=1e-5)


def test_candidates_that_do_not_fit_lose_the_same_beginning_of_their_prompt(lab: Lab) -> None:
    lab.write("long", [LONG, LONG | {"prompt": "Another", "chosen": "c" * 40}])
    fields = "do: rrhf, from: base, data: pairs, reward: letters, candidates: {by: data}, too_long: truncate_left"
    built = lab.train(f"{fields}, max_length: 30, {STILL}, {LORA}", pairs="long")
    # Both see the nine tokens that are left beside the longer one. Where that alone is too long there is no prompt.
    assert (built.metrics["prompts"], built.metrics["dropped_too_long"]) == (1, 1)
    answers = [(LONG["chosen"], True, 20.0), (LONG["rejected"], True, 1.0)]
    loss, _ = rrhf_by_hand(lab.causal(), prompt_ids(LONG["prompt"])[-9:], answers)
    assert built.metrics["train/first_loss"] == pytest.approx(loss, rel=1e-5)


def test_rrhf_learns_the_order_of_its_pairs(lab: Lab) -> None:
    lab.write("words", told_apart())
    fields = "do: rrhf, from: base, data: pairs, reward: letters, candidates: {by: data}, test: test, sft_term: mean"
    built = lab.train(f"{fields}, learning_rate: 1e-2, epochs: 6.0, {LORA}", pairs="words", test="words")
    assert 0.2 < built.metrics["test/before/accuracy"] < 0.8
    assert built.metrics["test/accuracy"] == 1
    curve = [value for _, value in built.logged("train/ranking_loss")]
    assert curve[-1] < 0.05 * curve[0]
