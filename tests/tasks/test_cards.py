"""CARDS is its definition, from caches that go back, whatever the batch looks like."""

from __future__ import annotations

import math
from collections.abc import Collection
from typing import Any

import pytest
import torch
from guided import (
    CPU,
    ENDING,
    ENDS,
    ITS_PROMPTS,
    PROMPTS,
    VOCABULARY,
    llama,
    logits_after,
    model_of,
    reward_model,
    reward_of,
)  # fmt: skip

from registry.methods.cards import acceptance, entropy, threshold
from registry.methods.draws import inverse_cdf, uniforms
from tasks.batch import NotFinite, Sample
from tasks.cards import Judge, Segments
from tasks.outputs import prefix_rewards
from tasks.reader import Positions, Reader
from tasks.sampler import sample

KEYS = [str(prompt) for prompt in PROMPTS]
OPTIONS: dict[str, Any] = {"keys": KEYS, "samples": 2, "max_new_tokens": 12, "seed": 11, "eos_ids": ENDS}
# Half of what these models draw is refused.
SEGMENTS = Segments(target=2.0, beta=1.0, entropy=2.0, shortest=2, longest=5, tries=4)


def judging(segments: Segments = SEGMENTS, model: Any = None) -> Judge:
    return Judge(Reader(prefix_rewards(model or reward_model(1)), list(ITS_PROMPTS), CPU), segments, ENDING)


def run(judge: Judge | None = None, family: str = "llama", **changes: Any) -> list[list[Sample]]:
    return sample(model_of(family, 0), PROMPTS, guidance=judge or judging(), **OPTIONS | changes)


@torch.inference_mode()
def by_hand(
    prompt: int, number: int, rule: Segments, refusals: list[int], family: str, ends: Collection[int] = ENDS
) -> list[int]:
    base, reward = model_of(family, 0), reward_model(1, family=family)
    ours, its = PROMPTS[prompt], ITS_PROMPTS[prompt]
    drawing = iter(uniforms(11, KEYS[prompt], number, 1000))
    accepting = iter(uniforms(11, f"{KEYS[prompt]}/accepting", number, 1000))
    of_prompt = reward_of(reward, its)
    answer: list[int] = []
    while len(answer) < 12 and not set(answer) & set(ends):
        tried: list[tuple[float, list[int]]] = []
        while True:
            segment: list[int] = []
            while True:
                logits = logits_after(base, ours + answer + segment)
                segment.append(int(inverse_cdf(logits[None], torch.tensor([next(drawing)]))))
                after = torch.distributions.Categorical(logits=logits_after(base, ours + answer + segment))
                ended = segment[-1] in ends or len(answer + segment) == 12
                uncertain = float(after.entropy()) >= rule.entropy and len(segment) >= rule.shortest
                if ended or uncertain or len(segment) == rule.longest:
                    break
            read = [*segment[:-1], *ENDING] if segment[-1] in ends else segment
            tried.append((reward_of(reward, its + answer + read), segment))
            start = (1 - rule.alpha) * of_prompt + rule.alpha * rule.target
            bar = min(rule.target, start + len(answer + segment) / 12 * (rule.target - start))
            if next(accepting) < min(1, math.exp((tried[-1][0] - bar) / rule.beta)):
                break
            refusals.append(prompt)
            if len(tried) == rule.tries:
                segment = max(tried, key=lambda one: one[0])[1]
                break
        answer += segment
    return answer


@pytest.mark.parametrize(("target", "family"), [(2.0, "llama"), (40.0, "llama"), (2.0, "qwen2"), (2.0, "gpt2")])
def test_segments_are_drawn_until_the_reward_model_accepts_them(target: float, family: str) -> None:
    rule = Segments(target=target, beta=1.0, entropy=2.0, shortest=2, longest=5, tries=4)
    found, refusals = run(judging(rule, reward_model(1, family=family)), family), list[int]()
    for prompt in range(len(PROMPTS)):
        for number in range(2):
            assert list(found[prompt][number].ids) == by_hand(prompt, number, rule, refusals, family)
    assert len(refusals) > 10 and any(s.finished for row in found for s in row)


def test_an_answer_that_is_its_end_alone_is_judged_as_an_empty_one() -> None:
    # So many tries that one of them is accepted: the best of equal ones would be a matter of rounding.
    rule, ends, refusals = Segments(target=10.0, beta=2.0, tries=1000), range(VOCABULARY), list[int]()
    found = run(judging(rule), eos_ids=ends)
    for prompt in range(len(PROMPTS)):
        for number in range(2):
            assert list(found[prompt][number].ids) == by_hand(prompt, number, rule, refusals, "llama", ends)
    assert len(refusals) > 10 and all(len(one.ids) == 1 and one.finished for row in found for one in row)


def test_a_policy_of_which_nothing_is_refused_is_itself() -> None:
    assert run(judging(Segments(target=-1e6))) == sample(llama(0), PROMPTS, **OPTIONS)


def test_neither_the_batch_nor_the_order_of_prompts_changes_an_answer() -> None:
    whole = run(samples=4)
    assert run(samples=4, rows=1) == whole
    assert run(samples=4, rows=5) == whole


def test_no_token_is_read_twice_and_none_is_over_the_limit() -> None:
    count, judge = Positions(), judging()
    found = run(judge, count=count, eos_ids=[], samples=1, rows=1)
    assert all(len(s.ids) == 12 for row in found for s in row)
    assert count.prefill == sum(map(len, PROMPTS)) and judge.reader.count.prefill == sum(map(len, ITS_PROMPTS))
    # Every token that was drawn is read once by each; where all tries of a segment failed, the best of them once more.
    assert judge.reader.count.decode == count.decode
    assert count.decode > 12 * len(PROMPTS)


def test_a_reward_that_is_no_number_is_refused_and_not_taken_for_accepted() -> None:
    broken = reward_model(1)
    broken.score.weight.data.fill_(torch.nan)
    with pytest.raises(NotFinite, match="not finite"):
        run(judging(model=broken))


def test_the_threshold_rises_from_between_prompt_and_target_to_the_target() -> None:
    at = [threshold(t, 100, 1.0, 9.0, 0.5) for t in (0, 25, 50, 100)]
    assert at == [5.0, 6.0, 7.0, 9.0]
    assert threshold(0, 100, 20.0, 9.0, 0.5) == 9.0


def test_a_reward_at_the_threshold_is_always_accepted_and_one_beta_below_once_in_e() -> None:
    assert acceptance(5.0, 5.0, 0.7) == acceptance(50.0, 5.0, 0.7) == 1.0
    assert acceptance(4.3, 5.0, 0.7) == pytest.approx(math.exp(-1))


def test_entropy_is_in_nats() -> None:
    found = entropy(torch.tensor([[0.0, 0.0, 0.0, 0.0], [9.0, -torch.inf, -torch.inf, -torch.inf]]))
    assert found.tolist() == pytest.approx([math.log(4), 0.0])
