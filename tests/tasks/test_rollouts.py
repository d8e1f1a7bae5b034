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


def run(guide: Rollouts, family: str = "llama", **changes: Any) -> list[list[Sample]]:
    return sample(model_of(family, 0), PROMPTS, guidance=Guidance([(guide, 2.0)], candidates=5), **OPTIONS | changes)


@torch.inference_mode()
def by_hand(prompt: int, number: int, look_ahead: int, family: str) -> list[int]:
    base, baseline, judge = model_of(family, 0), model_of(family, 2), reward_model(1, family=family)
    u = uniforms(11, KEYS[prompt], number, 9)
    answer: list[int] = []
    while len(answer) < 9 and not set(answer) & set(ENDS):
        logits = logits_after(base, PROMPTS[prompt] + answer)
        candidates = sorted(logits.topk(5).indices.tolist())
        rewards = []
        for candidate in candidates:
            text = [*answer, candidate]
            while len(text) < min(len(answer) + 1 + look_ahead, 9) and text[-1] not in ENDS:
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
