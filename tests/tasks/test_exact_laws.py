"""Guided policies answer as often as the papers say: over all answers of three tokens, in a language of eight.

Each law is enumerated from models that were loaded apart and read every text from scratch, and so are the laws of likely
mistakes, to which the same draws do not fit.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable, Sequence
from functools import cache
from typing import Any

import letters
import numpy as np
import pytest
import stages
import tiny
import torch
from asked import Asked
from closed_forms import best_of_n_pmf
from scipy.stats import chisquare
from torch import Tensor
from transformers import LlamaConfig, LlamaForSequenceClassification

from registry.language_models import load_language_model
from registry.prefix_scorers import hidden_states, load_prefix_scorer
from registry.reward_models import load_classifier
from registry.rows import Prompt

LONGEST = 3
END = 0
PROMPT = Prompt(({"role": "user", "content": "cab"},))
IDS = [3, 1, 2]
BEHIND = 7
"""What the reward model's template writes behind the end of an answer: a `g`."""
STUDY = """\
models:
  base: {source: ./base, precision: fp32}
  other: {source: ./other, precision: fp32}
  third: {source: ./third, precision: fp32}
data:
  prompts: {source: ./prompts.jsonl, format: prompt}
  pairs: {source: ./pairs.jsonl, format: preference}
rewards:
  worth: {kind: python, target: "letters:worth"}
  judge: {kind: classifier, source: ./judge, precision: fp32}
stages:
  rolls: {do: sample, from: base, prompts: prompts, samples: 64, max_new_tokens: 3}
  arm: {do: autoregressive_reward_model, from: other, data: pairs, learning_rate: 2e-2}
  values: {do: prefix_scorer, loss: cd_fudge, from: other, responses: rolls, reward: worth, learning_rate: 2e-2, epochs: 4}
  changes: {do: prefix_scorer, loss: cd_fudge, from: third, responses: rolls, reward: worth, learning_rate: 2e-2}

  genarm: {do: decode, method: genarm, from: base, guides: {arm: 1.5}, strength: 0.5}
  official:
    {do: decode, method: genarm, from: base, guides: {arm: 1.5}, strength: 0.5, official_code: true,
     temperature: 0.5714285714285714}
  mod: {do: decode, method: mod, from: base, policies: {other: 0.5, third: 0.3}}
  cd: {do: decode, method: controlled_decoding, from: base, scorers: {values: 1.0, changes: -0.4}, strength: 8.0}
  ahead:
    {do: decode, method: transfer_q, from: base, baseline: other, reward: judge, candidates: 8, look_ahead: 1,
     strength: 0.6, temperature: 1.0}
  text_ahead:
    {do: decode, method: transfer_q, from: base, baseline: other, reward: worth, candidates: 5, look_ahead: 2,
     strength: 0.8, temperature: 1.0}
  tried_often:
    {do: decode, method: cards, from: base, reward: judge, target: 3.6, alpha: 1.0, beta: 2.0, tries: 400,
     entropy: 1.3, shortest: 1, longest: 2}
  tried_thrice:
    {do: decode, method: cards, from: base, reward: judge, target: 2.0, alpha: 0.0, beta: 0.8, tries: 3,
     entropy: 1.3, shortest: 1, longest: 2}
"""

Answer = tuple[int, ...]
Law = dict[Answer, float]
Scores = Callable[[Answer], Tensor]
"""What is made of every next token behind the beginning of an answer."""


@pytest.fixture(scope="module")
def view(tmp_path_factory: pytest.TempPathFactory) -> Any:
    folder = tmp_path_factory.mktemp("laws")
    for name, seed in {"base": 9, "other": 1, "third": 2}.items():
        letters.language_model(folder / name, seed=seed, initializer_range=0.4)
    config = LlamaConfig.from_pretrained(folder / "base", num_labels=1, initializer_range=0.6)
    torch.manual_seed(0)
    LlamaForSequenceClassification(config).save_pretrained(folder / "judge")
    letters.tokenizer(behind="g").save_pretrained(folder / "judge")
    tiny.write_lines(folder / "prompts.jsonl", [{"prompt": PROMPT.messages[0]["content"]}])
    tiny.write_lines(folder / "pairs.jsonl", [{"prompt": "cab", "chosen": "dd", "rejected": "ef"}] * 8)
    view = stages.study(folder, STUDY)
    for name in ("rolls", "arm", "values", "changes"):
        stages.build(view, name)
    return view


def says(view: Any, name: str) -> Scores:
    """Log-probabilities."""
    model = load_language_model(view.artifact(name)).model

    @cache
    def after(begun: Answer) -> Tensor:
        logits: Tensor = model(input_ids=torch.tensor([[*IDS, *begun]]), use_cache=False).logits
        return logits[0, -1].double().log_softmax(-1)

    return after


def values(view: Any, name: str) -> Scores:
    loaded, head = load_prefix_scorer(view.artifact(name))

    @cache
    def after(begun: Answer) -> Tensor:
        return head.of_all(hidden_states(loaded.model, input_ids=torch.tensor([[*IDS, *begun]]))[0, -1])

    return after


def judged(view: Any) -> Callable[[Answer], float]:
    """The reward of the beginning of an answer, or of a finished one."""
    model, *_ = load_classifier(view.artifact("judge"))

    @cache
    def reward(answer: Answer) -> float:
        ids = [*IDS, *answer, *([BEHIND] if END in answer else [])]
        hidden = model.model(input_ids=torch.tensor([ids]), use_cache=False).last_hidden_state[0, -1]
        return float(hidden @ model.score.weight[0])

    return reward


@torch.inference_mode()
def law(scores: Scores) -> Law:
    """Of all answers that are drawn token by token in proportion to e to the power of the scores."""
    found: Law = {}
    beginnings: Law = {(): 1.0}
    for left in reversed(range(LONGEST)):
        nexts: Law = {}
        for begun, mass in beginnings.items():
            for token, share in enumerate(scores(begun).double().softmax(-1).tolist()):
                (found if token == END or not left else nexts)[(*begun, token)] = mass * share
        beginnings = nexts
    assert sum(found.values()) == pytest.approx(1)
    return found


def drawn(view: Any, name: str, many: int = 4000) -> list[Answer]:
    asked = Asked(view, name, prompts=[PROMPT], samples=many, max_new_tokens=LONGEST, rows=1000)
    return [answer.ids for answer in asked.answers[name][0]]


def fits(answers: Sequence[Answer], law: Law) -> bool:
    """Whether chance in a million would make the answers as unlike the law (chi-square, rare answers taken together)."""
    counts = Counter(answers)
    rare = {answer for answer, share in law.items() if share * len(answers) < 5}
    if any(law.get(answer, 0.0) == 0 for answer in counts):
        return False
    cells = [(counts[answer], law[answer] * len(answers)) for answer in law if answer not in rare]
    cells.append((sum(counts[answer] for answer in rare), sum(law[answer] for answer in rare) * len(answers)))
    seen, expected = np.array([cell for cell in cells if cell[1] > 0]).T
    return bool(chisquare(seen, expected * seen.sum() / expected.sum()).pvalue > 1e-6)


def test_genarm_draws_from_the_product_of_powers(view: Any) -> None:
    base, arm = says(view, "base"), says(view, "arm")
    answers = drawn(view, "genarm")
    assert fits(answers, law(lambda begun: base(begun) + 0.75 * arm(begun)))
    assert fits(drawn(view, "official"), law(lambda begun: base(begun) + 0.75 * arm(begun)))
    for mistaken in (-0.75, 0.5, 1.5, 0.0):
        assert not fits(answers, law(lambda begun, weight=mistaken: base(begun) + weight * arm(begun)))
    assert not fits(answers, law(lambda begun: (base(begun) + 0.75 * arm(begun)) / 1.75)), "divided by its weights"


def test_several_policies_are_drawn_from_in_proportion_to_their_powers(view: Any) -> None:
    base, other, third = (says(view, name) for name in ("base", "other", "third"))

    def of(*weights: float) -> Law:
        return law(lambda begun: weights[0] * base(begun) + weights[1] * other(begun) + weights[2] * third(begun))

    answers = drawn(view, "mod")
    assert fits(answers, of(0.2, 0.5, 0.3))
    for mistaken in ((1.0, 0.5, 0.3), (0.2, 0.3, 0.5), (0.0, 0.5, 0.3), (1.8, -0.5, -0.3)):
        assert not fits(answers, of(*mistaken))
    mixture = law(lambda begun: (0.2 * base(begun).exp() + 0.5 * other(begun).exp() + 0.3 * third(begun).exp()).log())
    assert not fits(answers, mixture), "a sum of probabilities is no product"


def test_controlled_decoding_tilts_every_token_by_its_value(view: Any) -> None:
    base, first, second = says(view, "base"), values(view, "values"), values(view, "changes")

    def of(strength: float, other: float) -> Law:
        return law(lambda begun: base(begun) + strength * (first(begun) + other * second(begun)))

    answers = drawn(view, "cd")
    assert fits(answers, of(8.0, -0.4))
    for mistaken in ((-8.0, -0.4), (4.0, -0.4), (8.0, 0.4), (8.0, 0.0), (0.0, 0.0)):
        assert not fits(answers, of(*mistaken))


def carried_on(view: Any, look_ahead: int) -> Callable[[Answer], Answer]:
    """What the baseline makes of the beginning of an answer."""
    baseline = says(view, "other")

    def carried(begun: Answer) -> Answer:
        longest = min(len(begun) + look_ahead, LONGEST)
        while len(begun) < longest and END not in begun:
            begun = (*begun, int(baseline(begun).argmax()))
        return begun

    return carried


def test_transfer_q_tilts_every_token_by_the_reward_of_what_the_baseline_makes_of_it(view: Any) -> None:
    base, reward = says(view, "base"), judged(view)

    def of(strength: float, look_ahead: int = 1) -> Law:
        carried = carried_on(view, look_ahead)

        def scores(begun: Answer) -> Tensor:
            came = [carried((*begun, token)) for token in range(8)]
            finished = [answer if END in answer else (*answer, END) for answer in came]
            return base(begun) + strength * torch.tensor([reward(answer) for answer in finished])

        return law(scores)

    answers = drawn(view, "ahead")
    assert fits(answers, of(0.6))
    for mistaken in (of(-0.6), of(0.3), of(0.6, look_ahead=0), of(0.6, look_ahead=2)):
        assert not fits(answers, mistaken)


def test_transfer_q_with_a_reward_of_texts_draws_among_its_candidates(view: Any) -> None:
    base, carried = says(view, "base"), carried_on(view, 2)

    def of(strength: float, candidates: int = 5) -> Law:
        def scores(begun: Answer) -> Tensor:
            worth = [letters.worth_of(carried((*begun, token))) for token in range(8)]
            outside = base(begun) < base(begun).topk(candidates).values[-1]
            return (base(begun) + strength * torch.tensor(worth)).masked_fill(outside, -torch.inf)

        return law(scores)

    answers = drawn(view, "text_ahead")
    assert fits(answers, of(0.8))
    for mistaken in (of(-0.8), of(0.4), of(0.8, candidates=4), of(0.8, candidates=6)):
        assert not fits(answers, mistaken)


@torch.inference_mode()
def segmented(base: Scores, of_segment: Callable[[list[Answer], np.ndarray], np.ndarray]) -> Law:
    """Of answers that consist of segments: `of_segment` gives the law of those, each with the beginning before it, from
    how likely the policy draws them."""

    def is_over(answer: Answer) -> bool:
        return END in answer or len(answer) == LONGEST

    def is_uncertain(answer: Answer) -> bool:
        return float(-(base(answer).exp() * base(answer)).sum()) >= 1.3

    def segments(begun: Answer) -> Law:
        ended: Law = {}
        growing: Law = {begun: 1.0}
        while growing:
            nexts: Law = {}
            for answer, mass in growing.items():
                for token, share in enumerate(base(answer).exp().tolist()):
                    grown = (*answer, token)
                    ends = is_over(grown) or len(grown) == len(begun) + 2 or is_uncertain(grown)
                    (ended if ends else nexts)[grown] = mass * share
            growing = nexts
        return ended

    found: Law = {}
    growing: Law = {(): 1.0}
    lengths = set()
    while growing:
        nexts: Law = {}
        for begun, mass in growing.items():
            whole = segments(begun)
            lengths |= {len(answer) - len(begun) for answer in whole if not is_over(answer)}
            shares = of_segment(list(whole), np.array(list(whole.values())))
            for answer, share in zip(whole, shares.tolist(), strict=True):
                at = found if is_over(answer) else nexts
                at[answer] = at.get(answer, 0.0) + mass * share
        growing = nexts
    assert lengths == {1, 2}, "the model's uncertainty decided nothing"
    assert sum(found.values()) == pytest.approx(1)
    return found


def test_segments_that_are_tried_until_accepted_are_the_policys_tilted_by_their_rewards(view: Any) -> None:
    """Below the target by as much as one likes, which cancels."""
    base, reward = says(view, "base"), judged(view)

    def of(beta: float) -> Law:
        def tilted(answers: list[Answer], mass: np.ndarray) -> np.ndarray:
            rewards = np.array([reward(answer) for answer in answers])
            assert rewards.max() < 3.6
            whole = mass * np.exp(rewards / beta)
            return np.asarray(whole / whole.sum())

        return segmented(base, tilted)

    answers = drawn(view, "tried_often", 1500)
    assert fits(answers, of(2.0))
    for mistaken in (-2.0, 1.0, 4.0, math.inf):
        assert not fits(answers, of(mistaken))


def test_segments_that_are_tried_thrice_are_the_accepted_one_or_the_best_of_three(view: Any) -> None:
    base, reward = says(view, "base"), judged(view)
    target, beta = 2.0, 0.8

    def of(tries: int, *, rises: bool = True, best: bool = True) -> Law:
        def accepted(answers: list[Answer], mass: np.ndarray) -> np.ndarray:
            rewards, first = np.array([reward(answer) for answer in answers]), reward(())
            so_far = np.array([len(answer) for answer in answers]) / LONGEST if rises else 0.0
            bar = np.minimum(target, first + so_far * (target - first))
            chance = np.minimum(1, np.exp((rewards - bar) / beta))
            refusal = float((mass * (1 - chance)).sum())
            refused = mass * (1 - chance) / refusal
            last = best_of_n_pmf(refused, rewards, tries) if best else refused
            return np.asarray(mass * chance * (1 - refusal**tries) / (1 - refusal) + refusal**tries * last)

        return segmented(base, accepted)

    answers = drawn(view, "tried_thrice", 1500)
    assert fits(answers, of(3))
    for mistaken in (of(1), of(2), of(4), of(3, rises=False), of(3, best=False)):
        assert not fits(answers, mistaken)
