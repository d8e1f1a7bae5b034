"""Block-wise controlled decoding is its definition, from one cache, whatever the batch looks like."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from typing import Any

import numpy as np
import pytest
import torch
from closed_forms import best_of_n_pmf
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
)  # fmt: skip

from registry.methods.draws import inverse_cdf, uniforms
from tasks.batch import Sample
from tasks.blocks import Blockwise, PrefixBlocks, TextBlocks
from tasks.outputs import prefix_rewards
from tasks.reader import Positions, Reader, next_token_logits
from tasks.sampler import sample

KEYS = [str(prompt) for prompt in PROMPTS]
OPTIONS: dict[str, Any] = {"keys": KEYS, "samples": 2, "max_new_tokens": 12, "seed": 11, "eos_ids": ENDS}


def by_prefix(judge: Any) -> PrefixBlocks:
    return PrefixBlocks(Reader(prefix_rewards(judge), ITS_PROMPTS, CPU), lambda reward, tokens: reward)


def worth(ids: Sequence[int]) -> float:
    return float(sum(i * i % 11 for i in ids))


def by_text() -> TextBlocks:
    return TextBlocks(lambda prompts, answers: [[worth(answer) for answer in row] for row in answers])


def run(
    *scorers: tuple[Any, float], block: int = 4, branches: int = 3, family: str = "llama", **changes: Any
) -> list[list[Sample]]:
    return sample(model_of(family, 0), PROMPTS, guidance=Blockwise(scorers, block, branches), **OPTIONS | changes)


def drawn_by_hand(
    base: Any, prompt: int, kept: list[int], number: int, branch: int, many: int, ends: Collection[int] = ENDS
) -> list[int]:
    """Up to `many` more tokens of one branch, every prefix read from scratch."""
    u = uniforms(11, KEYS[prompt], number, 12, branch)
    added: list[int] = []
    while len(added) < many and len(kept) + len(added) < 12 and not set(added) & set(ends):
        logits = logits_after(base, PROMPTS[prompt] + kept + added)
        added.append(int(inverse_cdf(logits[None], torch.tensor([u[len(kept) + len(added)]]))))
    return added


@torch.inference_mode()
@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("block", [1, 4, 5])
def test_every_block_is_the_best_of_its_branches_read_from_scratch(block: int, family: str) -> None:
    base, judge = model_of(family, 0), reward_model(1, family=family)
    found = run((by_prefix(judge), 1.0), block=block, family=family)
    for prompt, its in enumerate(ITS_PROMPTS):
        for number in range(2):
            kept: list[int] = []
            while len(kept) < 12 and not set(kept) & set(ENDS):
                drawn = [drawn_by_hand(base, prompt, kept, number, b, block) for b in range(3)]
                kept += max(drawn, key=lambda added: reward_of(judge, its + kept + added))
            assert list(found[prompt][number].ids) == kept
    assert any(s.finished for row in found for s in row)


@torch.inference_mode()
def test_a_scorer_that_values_a_token_before_reading_it_stays_one_token_behind() -> None:
    base, guide = llama(0), llama(2)
    lagging = PrefixBlocks(
        Reader(next_token_logits(guide), list(ITS_PROMPTS), CPU, lag=1),
        lambda logits, tokens: logits.gather(2, tokens[..., None])[..., 0],
    )
    found = run((lagging, 1.0))
    for prompt, its in enumerate(ITS_PROMPTS):
        kept: list[int] = []
        while len(kept) < 12 and not set(kept) & set(ENDS):
            drawn = [drawn_by_hand(base, prompt, kept, 0, b, 4) for b in range(3)]
            best = max(drawn, key=lambda added: float(logits_after(guide, its + kept + added[:-1])[added[-1]]))
            kept += best
        assert list(found[prompt][0].ids) == kept


@torch.inference_mode()
def test_a_scorer_with_an_end_of_its_own_reads_that_for_any_end() -> None:
    base, judge, its_end = llama(0), reward_model(1), 31
    scorer = by_prefix(judge)
    scorer.end = its_end
    found = run((scorer, 1.0))
    for prompt, its in enumerate(ITS_PROMPTS):
        kept: list[int] = []
        while len(kept) < 12 and not set(kept) & set(ENDS):
            drawn = [drawn_by_hand(base, prompt, kept, 0, b, 4) for b in range(3)]
            read = [[its_end if token in ENDS else token for token in added] for added in drawn]
            rewards = [reward_of(judge, its + kept + added) for added in read]
            kept += drawn[max(range(3), key=lambda b: rewards[b])]
        assert list(found[prompt][0].ids) == kept
    assert found != run((by_prefix(judge), 1.0))


@torch.inference_mode()
def test_a_reward_of_finished_answers_reads_one_that_ends_at_once_as_empty() -> None:
    base, judge, ends = llama(0), reward_model(1), range(0, VOCABULARY, 3)
    scorer = by_prefix(judge)
    scorer.finish = ENDING
    found = run((scorer, 1.0), eos_ids=ends)

    def finished(answer: list[int]) -> list[int]:
        return [*(token for token in answer if token not in ends), *ENDING]

    at_once = set[bool]()
    for prompt, its in enumerate(ITS_PROMPTS):
        for number in range(2):
            kept: list[int] = []
            while len(kept) < 12 and not set(kept) & set(ends):
                drawn = [drawn_by_hand(base, prompt, kept, number, b, 4, ends) for b in range(3)]
                best = max(drawn, key=lambda added: reward_of(judge, its + finished(kept + added)))
                at_once |= {added == best for added in drawn if not kept and added[0] in ends}
                kept += best
            assert list(found[prompt][number].ids) == kept
    assert at_once == {True, False}, "no empty answer was kept, or none was beaten"


def test_how_many_samples_are_asked_for_changes_none_of_them() -> None:
    three = run((by_text(), 1.0), samples=3)
    assert [row[:2] for row in three] == run((by_text(), 1.0)) and len({s.ids for s in three[0]}) > 1


def test_one_branch_is_the_policy_token_for_token() -> None:
    plain = sample(llama(0), PROMPTS, **OPTIONS)
    assert run((by_prefix(reward_model(1)), 1.0), branches=1) == plain
    assert run((by_text(), 1.0), branches=1, block=1) == plain


def test_a_block_as_long_as_an_answer_is_best_of_n_over_the_same_draws() -> None:
    draws = sample(llama(0), PROMPTS, **OPTIONS | {"samples": 6}, chosen=2)
    best = [[max(row[s::2], key=lambda sample: worth(sample.ids)) for s in range(2)] for row in draws]
    assert run((by_text(), 1.0), block=12) == best
    assert run((by_text(), 1.0), block=500) == best


def test_scorers_are_weighed() -> None:
    judge = reward_model(1)
    one = run((by_prefix(judge), 1.0))
    assert run((by_prefix(judge), 0.5), (by_text(), 0.0)) == one
    assert run((by_prefix(judge), 0.3), (by_prefix(judge), 0.7)) == one
    assert run((by_prefix(judge), 1e-9), (by_text(), 1.0)) == run((by_text(), 1.0))
    assert run((by_prefix(judge), -1.0)) != one


def test_neither_the_batch_nor_the_order_of_prompts_changes_an_answer() -> None:
    scorers = [(by_prefix(reward_model(1)), 1.0), (by_text(), 0.1)]
    whole = run(*scorers, samples=4)
    assert run(*scorers, samples=4, rows=1) == whole
    assert run(*scorers, samples=4, rows=9) == whole


def test_prompts_are_read_once_and_no_position_is_fed_twice() -> None:
    count, scorer = Positions(), by_prefix(reward_model(1))
    found = run((scorer, 1.0), count=count, eos_ids=[])
    drawn = sum(len(s.ids) for row in found for s in row)
    assert count.prefill == sum(map(len, PROMPTS)) and scorer.reader.count.prefill == sum(map(len, ITS_PROMPTS))
    assert scorer.reader.count.decode == 3 * drawn
    # Of each block of four the kept branch's last token is read once more, the others' never.
    assert count.decode == len(PROMPTS) * 2 * (3 * (3 * 3) + 2 * 1)


def test_a_branch_that_has_ended_is_fed_no_further() -> None:
    count = Positions()
    prompts, keys = PROMPTS[:1], KEYS[:1]
    options = OPTIONS | {"keys": keys, "samples": 1, "eos_ids": range(37)}
    found = sample(llama(0), prompts, guidance=Blockwise([(by_text(), 1.0)], 4, 3), count=count, **options)
    assert len(found[0][0].ids) == 1 and count.decode == 0


def with_positions(model: Any, many: int) -> Any:
    """GPT-2 that knows no more positions."""
    table = torch.nn.Embedding(many, 32)
    table.weight.data = model.transformer.wpe.weight.data[:many].clone()
    model.transformer.wpe = table
    return model


@torch.inference_mode()
def test_answers_may_fill_the_positions_of_a_model_beside_answers_that_have_just_begun() -> None:
    def asked(policy: Any, judge: Any) -> list[list[Sample]]:
        # Two rows at a time, so that one begins where another is about to end.
        guidance = Blockwise([(by_prefix(judge), 1.0)], 5, 3)
        return sample(policy, PROMPTS, guidance=guidance, rows=6, **OPTIONS | {"samples": 4})

    longest = max(map(len, PROMPTS)) + 12, max(map(len, ITS_PROMPTS)) + 12
    whole = asked(model_of("gpt2", 0), reward_model(1, family="gpt2"))
    cut = asked(
        with_positions(model_of("gpt2", 0), longest[0]), with_positions(reward_model(1, family="gpt2"), longest[1])
    )
    assert [[s.ids for s in row] for row in cut] == [[s.ids for s in row] for row in whole]
    assert max(len(s.ids) for row in cut for s in row) == 12


@torch.inference_mode()
def test_blocks_of_one_token_are_best_of_n_over_tokens() -> None:
    base, many = llama(0), 3000
    (row,) = sample(
        base, PROMPTS[:1], guidance=Blockwise([(by_text(), 1.0)], 1, 3), **OPTIONS
        | {"keys": ["one"], "samples": many, "max_new_tokens": 1},
    )  # fmt: skip
    p = logits_after(base, PROMPTS[0]).double().softmax(-1).numpy()
    law = best_of_n_pmf(p, np.array([worth([token]) for token in range(len(p))]), 3)
    drawn = np.bincount([s.ids[0] for s in row], minlength=len(p)) / many
    assert (np.abs(drawn - law) <= 4.5 * np.sqrt(law * (1 - law) / many) + 1e-9).all()
    assert np.abs(p - law).max() > 0.1
