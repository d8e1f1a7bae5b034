"""Transfer-Q* is its definition: every candidate scored by what the baseline makes of it, each position fed once."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from guided import (
    CPU,
    ENDING,
    ENDS,
    FAMILIES,
    ITS_PROMPTS,
    PROMPTS,
    VOCABULARY,
    llama,
    logits_after,
    model_of,
    reward_model,
    reward_of,
)

from registry.methods.draws import inverse_cdf, uniforms
from tasks.batch import Sample
from tasks.blocks import PrefixBlocks
from tasks.guidance import Guidance
from tasks.outputs import prefix_rewards
from tasks.reader import Positions, Reader, next_token_logits
from tasks.rollouts import Rollouts
from tasks.sampler import sample

KEYS = [str(prompt) for prompt in PROMPTS]
OPTIONS: dict[str, Any] = {"keys": KEYS, "samples": 2, "max_new_tokens": 9, "seed": 11, "eos_ids": ENDS}


def guide(look_ahead: int = 3, family: str = "llama") -> Rollouts:
    judge = PrefixBlocks(
        Reader(prefix_rewards(reward_model(1, family=family)), ITS_PROMPTS, CPU),
        lambda rewards, tokens: rewards,
        finish=ENDING,
    )
    return Rollouts(Reader(next_token_logits(model_of(family, 2)), ITS_PROMPTS, CPU), judge, look_ahead)


def run(
    guide: Rollouts, family: str = "llama", strength: float = 2.0, candidates: int = 5, **changes: Any
) -> list[list[Sample]]:
    guidance = Guidance([(guide, strength)], candidates)
    return sample(model_of(family, 0), PROMPTS, guidance=guidance, **OPTIONS | changes)


@torch.inference_mode()
def by_hand(prompt: int, number: int, look_ahead: int, family: str, k: int = 5, longest: int = 9) -> list[int]:
    base, baseline, judge = model_of(family, 0), model_of(family, 2), reward_model(1, family=family)
    u = uniforms(11, KEYS[prompt], number, 9)
    answer: list[int] = []
    while len(answer) < longest and not set(answer) & set(ENDS):
        logits = logits_after(base, PROMPTS[prompt] + answer)
        candidates = sorted(logits.topk(k).indices.tolist())
        rewards = []
        for candidate in candidates:
            text = [*answer, candidate]
            while len(text) < min(len(answer) + 1 + look_ahead, longest) and text[-1] not in ENDS:
                text.append(int(logits_after(baseline, ITS_PROMPTS[prompt] + text).argmax()))
            finished = text[:-1] if text[-1] in ENDS else text
            rewards.append(reward_of(judge, ITS_PROMPTS[prompt] + finished + ENDING))
        whole = logits[candidates] + 2.0 * torch.tensor(rewards)
        answer.append(candidates[int(inverse_cdf(whole[None], torch.tensor([u[len(answer)]])))])
    return answer


@pytest.mark.parametrize(("look_ahead", "family"), [(1, "llama"), *((3, family) for family in FAMILIES)])
def test_a_candidate_is_worth_what_the_baseline_makes_of_it(look_ahead: int, family: str) -> None:
    found = run(guide(look_ahead, family), family)
    for prompt in range(len(PROMPTS)):
        for number in range(2):
            assert list(found[prompt][number].ids) == by_hand(prompt, number, look_ahead, family)
    assert any(s.finished for row in found for s in row)


def test_every_token_may_be_a_candidate() -> None:
    found = run(guide(1), candidates=VOCABULARY, max_new_tokens=3)
    for prompt in (0, 1):
        assert list(found[prompt][0].ids) == by_hand(prompt, 0, 1, "llama", k=VOCABULARY, longest=3)
    assert run(guide(1), candidates=VOCABULARY + 5, max_new_tokens=3) == found


def test_one_candidate_is_the_policys_greedy_token_whatever_comes_of_it() -> None:
    assert run(guide(), strength=50.0, candidates=1) == sample(llama(0), PROMPTS, **OPTIONS | {"top_k": 1})


def test_without_strength_the_policy_is_drawn_from_token_for_token() -> None:
    assert run(guide(), strength=0.0, candidates=VOCABULARY) == sample(llama(0), PROMPTS, **OPTIONS)
    assert run(guide(), strength=0.0) == sample(llama(0), PROMPTS, **OPTIONS | {"top_k": 5})


def test_where_every_token_ends_the_answer_the_reward_of_nothing_decides_nothing() -> None:
    looking, ends = guide(), range(VOCABULARY)
    found = run(looking, strength=50.0, eos_ids=ends)
    assert found == sample(llama(0), PROMPTS, **OPTIONS | {"top_k": 5, "eos_ids": ends})
    assert all(len(one.ids) == 1 and one.finished for row in found for one in row)
    assert looking.baseline.count.decode == 0


def test_neither_the_batch_nor_the_order_of_prompts_changes_an_answer() -> None:
    whole = run(guide(), samples=4)
    assert run(guide(), samples=4, rows=1) == whole
    assert run(guide(), samples=4, rows=5) == whole


def test_the_prefix_is_shared_and_every_position_fed_once() -> None:
    count, looking = Positions(), guide()
    found = run(looking, samples=1, eos_ids=[], count=count)
    steps = sum(len(s.ids) for row in found for s in row)
    assert steps == 9 * len(PROMPTS)
    # Five candidates and all but the last token that the baseline adds; the limit leaves 2, 1 and 0 at the end.
    assert looking.baseline.count.decode == 5 * len(PROMPTS) * (6 * 3 + 2 + 1)
    assert looking.baseline.count.prefill == sum(map(len, ITS_PROMPTS))
    assert count.decode == 8 * len(PROMPTS)
