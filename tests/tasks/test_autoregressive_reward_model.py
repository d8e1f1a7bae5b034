"""The autoregressive reward model as a stage and as a reward."""

from __future__ import annotations

import json

import pytest
import stages
from textbook import LONG, LORA, PAIRS, STILL, Lab, answer_ids, candidates, log_probs, prompt_ids, told_apart

from registry.rewards import scorer


@pytest.fixture(scope="module")
def lab(tmp_path_factory: pytest.TempPathFactory) -> Lab:
    return Lab(tmp_path_factory.mktemp("lab"))


ARM = "do: autoregressive_reward_model, from: base, data: pairs, learning_rate: 1e-2, batch_size: 4"


def test_an_autoregressive_reward_is_the_log_probability_of_the_answer_and_its_end(lab: Lab) -> None:
    built = lab.train(f"{ARM}, max_length: 40, {LORA}")
    causal = lab.causal(built)
    rows = [(pair["prompt"], pair["chosen"]) for pair in PAIRS] + [("Why?", ""), (LONG["prompt"], LONG["chosen"])]
    found = scorer(built.artifact, batch=4)(
        [({"role": "user", "content": prompt},) for prompt, _ in rows], [answer for _, answer in rows]
    )
    for (prompt, answer), reward in zip(rows, found, strict=True):
        ids = answer_ids(answer, True)
        # Of what is too long the prompt's beginning is not read: 40 - 21 of its 33 tokens.
        (expected,) = log_probs(causal, prompt_ids(prompt)[-(40 - len(ids)) :], [ids])
        assert reward == pytest.approx(expected, rel=1e-5, abs=1e-5)
    # Of an answer that is too long by itself the end is read, behind the prompt's last token.
    (reward,) = scorer(built.artifact, batch=4)([({"role": "user", "content": "Hm"},)], ["a" * 10 + "z" * 50])
    (expected,) = log_probs(causal, prompt_ids("Hm")[-1:], [answer_ids("z" * 38, True)])
    assert reward == pytest.approx(expected, rel=1e-5)


def test_an_autoregressive_reward_model_stands_wherever_a_reward_does(lab: Lab) -> None:
    more = f"""\
  arm: {{{ARM}, {LORA}}}
  labelled: {{do: label, responses: rolls, reward: arm}}
  calibrated: {{do: calibrate, reward: arm, reference: base, prompts: prompts, samples: 2, max_new_tokens: 3}}
  ranked: {{do: rrhf, from: base, data: prompts, reward: arm, max_new_tokens: 5, {STILL}, {LORA}}}
  best: {{do: decode, method: best_of_n, from: base, reward: arm, n: 2}}
"""
    view = lab.study(more)
    score = scorer(stages.build(view, "arm").artifact, batch=8)
    stages.build(view, "labelled")
    folder = view.artifact("labelled").folder
    assert folder is not None
    pairs = [json.loads(line) for line in (folder / "pairs.jsonl").open()]
    assert len(pairs) == 11
    for side in ("chosen", "rejected"):
        values = score([pair["prompt"] for pair in pairs], [pair[side] for pair in pairs])
        assert [pair[f"reward_{side}"] for pair in pairs] == pytest.approx(values, rel=1e-5)
    assert all(pair["reward_chosen"] > pair["reward_rejected"] for pair in pairs)
    stages.build(view, "calibrated")
    for prompt, answers in candidates(stages.build(view, "ranked")):
        values = score([[{"role": "user", "content": prompt}]] * len(answers), [text for text, *_ in answers])
        assert [reward for *_, reward in answers] == pytest.approx(values, rel=1e-5)


def test_the_autoregressive_reward_model_learns_the_order_of_its_pairs(lab: Lab) -> None:
    lab.write("words", told_apart())
    fields = "do: autoregressive_reward_model, from: base, data: pairs, test: test, beta: 0.5"
    built = lab.train(f"{fields}, learning_rate: 1e-2, epochs: 6.0, {LORA}", pairs="words", test="words")
    assert built.metrics["test/accuracy"] == 1
    assert built.logged("train/accuracy")[-1][1] == 1
    assert built.metrics["train/last_loss"] < 0.1 < built.metrics["train/first_loss"]
