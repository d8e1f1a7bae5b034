"""Training on the answers to one prompt in one row: what RRHF, QRPO and the autoregressive reward model share."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import stages
import tiny
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
    margins,
    mean,
    prompt_ids,
    qrpo_by_hand,
    qrpo_loss,
    reward_model_loss,
    rrhf_loss,
)

from specs.problems import UserError
from tasks import scores
from tasks import trainer as trainers
from tasks.candidates import CandidateTrainer

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def lab(tmp_path_factory: pytest.TempPathFactory) -> Lab:
    return Lab(tmp_path_factory.mktemp("lab"))


@pytest.mark.parametrize("method", METHODS)
def test_the_loss_is_that_of_the_formula_before_and_after_a_step(lab: Lab, method: str) -> None:
    def by_hand(causal: Any) -> float:
        if method == "rrhf":
            return rrhf_loss(causal, candidates(two))
        if method == "qrpo":
            return qrpo_loss(qrpo_by_hand(lab, causal, 0.5), 0.5)
        return reward_model_loss(causal, 0.2)

    # The first of one step and the first of two are the same step: the learning rate falls only after it.
    fields = f"{METHODS[method]}, learning_rate: 1e-3, batch_size: 16, lora: null"
    one, two = (lab.train(f"{fields}, epochs: {epochs}") for epochs in (1.0, 2.0))
    (_, first), (_, second) = two.logged("train/loss")
    assert first == pytest.approx(by_hand(lab.causal()), rel=1e-5)
    assert abs(second - first) > 1e-2 * first
    assert second == pytest.approx(by_hand(lab.causal(one)), rel=1e-4)


@pytest.mark.parametrize(
    "fields",
    [
        "do: rrhf, from: base, data: pairs, reward: words, candidates: {by: data}",
        "do: autoregressive_reward_model, from: base, data: pairs",
    ],
)
def test_the_first_batch_that_is_tried_holds_the_row_of_most_tokens(
    lab: Lab, monkeypatch: pytest.MonkeyPatch, fields: str
) -> None:
    # 4 and 20 tokens of two answers behind one prompt, where the other row has the longer answer: 5 and 16.
    two = [
        {"prompt": "p", "chosen": "c" * 9, "rejected": "r" * 9},
        {"prompt": "qq", "chosen": "c" * 13, "rejected": "r"},
    ]
    lab.write("most", two)
    tried: list[list[int]] = []
    monkeypatch.setattr(trainers, "loss_of", lambda trainer, rows: tried.append(list(rows)) or 0.5)
    lab.train(f"{fields}, batch_size: 1, {LORA}", pairs="most", micro_batch=1)
    assert tried == [[0]]


@pytest.mark.parametrize("method", ["rrhf", "autoregressive_reward_model"])
def test_held_out_pairs_are_ordered_by_what_the_method_compares(lab: Lab, method: str) -> None:
    lab.write("held out", [PAIRS[1], LONG, SHORT, {"prompt": "Hm", "chosen": "same", "rejected": "size"}])
    tested = [json.loads(line) for line in (lab.folder / "held out.jsonl").open()]
    built = lab.train(f"{METHODS[method]}, test: test, learning_rate: 1e-2, batch_size: 8, {LORA}", test="held out")
    found = margins(lab.causal(built), tested, by_length=method == "rrhf")
    assert built.metrics["test/pairs"] == 4
    assert built.metrics["test/mean_margin"] == pytest.approx(mean(found), rel=1e-4)
    assert built.metrics["test/accuracy"] == mean([float(m > 0) for m in found])
    assert built.metrics["test/length_baseline"] == (0 + 1 + 0 + 0.5) / 4
    if method == "rrhf":
        before = margins(lab.causal(), tested, by_length=True)
        assert built.metrics["test/before/accuracy"] == mean([float(m > 0) for m in before])
        rises = [float(m > 0) - float(b > 0) for m, b in zip(found, before, strict=True)]
        assert built.metrics["test/accuracy_minus_before"] == mean(rises)


@pytest.mark.parametrize("method", ["rrhf", "autoregressive_reward_model"])
def test_held_out_pairs_are_cut_to_what_the_model_reads(tmp_path: Path, method: str) -> None:
    lab = Lab(tmp_path, max_position_embeddings=37)
    lab.write("long", [LONG])
    built = lab.train(f"{METHODS[method]}, test: test, {STILL}, {LORA}", test="long")
    (expected,) = margins(lab.causal(), [LONG], 37, by_length=method == "rrhf")
    assert built.metrics["test/mean_margin"] == pytest.approx(expected, rel=1e-4)


@pytest.mark.parametrize("method", ["rrhf", "autoregressive_reward_model"])
def test_held_out_pairs_that_all_are_too_long_are_told_before_anything_is_trained(
    lab: Lab, monkeypatch: pytest.MonkeyPatch, method: str
) -> None:
    monkeypatch.setattr(CandidateTrainer, "train", lambda self, **_: pytest.fail("it trained"))
    lab.write("long", [LONG])
    with pytest.raises(UserError, match=r"^test: no pair is left to test on: all have answers of 21 tokens or more$"):
        fields = f"{METHODS[method]}, test: test, max_length: 21, too_long: truncate_left, {LORA}"
        lab.train(fields, test="long")


@pytest.mark.parametrize("method", ["rrhf", "qrpo"])
def test_what_was_scored_before_a_death_is_not_scored_again(
    lab: Lab, monkeypatch: pytest.MonkeyPatch, method: str
) -> None:
    fields = f"{METHODS[method]}, learning_rate: 1e-2, {LORA}"
    whole = lab.train(fields)
    into = lab.place()
    with dying(into) as patch:
        patch.setattr(trainers, "rehearse", dies)
        lab.train(fields, into)
    monkeypatch.setattr(scores, "scorer", lambda *_, **__: pytest.fail("it scored again"))
    resumed = lab.train(fields, into)
    assert ("note", "these answers were scored before: their scores are taken up") in resumed.events
    assert apart(resumed, whole) == 0


def test_answers_that_were_cut_off_before_they_said_anything_are_left_out(lab: Lab) -> None:
    more = """\
  thin: {do: sample, from: base, prompts: prompts, samples: 2, max_new_tokens: 5, seed: 9}
  labelled: {do: label, responses: thin, reward: letters}
  arm: {do: autoregressive_reward_model, from: base, data: labelled, test: labelled, learning_rate: 1e-9}
  policy: {do: qrpo, from: base, data: labelled, reward: cal}
"""
    view = lab.study(more)
    folder = view.artifact("thin").folder
    assert folder is not None
    folder.mkdir(parents=True)
    ends = [False, True, True, True]  # the first worse answer has no token at all, the second only its end
    tiny.write_lines(
        folder / "responses.jsonl",
        [
            {
                "prompt": [{"role": "user", "content": pair["prompt"]}],
                "responses": [
                    {"text": "" if i < 2 else "1", "tokens": 5, "finished": end},
                    {"text": "good", "tokens": 5, "finished": True},
                ],
            }
            for i, (pair, end) in enumerate(zip(PAIRS, ends, strict=False))
        ],
    )
    assert stages.build(view, "labelled").metrics["pairs"] == 4
    arm = stages.build(view, "arm")
    assert arm.metrics["pairs"] == arm.metrics["test/pairs"] == 3
    assert ("note", "labelled: 1 of 4 pairs have an empty answer") in arm.events
    ids = [[answer_ids("good", True), answer_ids(text, True)] for text in ("", "1", "1")]
    sums = [log_probs(lab.causal(), prompt_ids(p["prompt"]), i) for p, i in zip(PAIRS[1:4], ids, strict=True)]
    assert arm.metrics["test/mean_margin"] == pytest.approx(mean([c - r for c, r in sums]), rel=1e-4)
    assert stages.build(view, "policy").metrics["rows"] == 3
