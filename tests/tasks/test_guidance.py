"""Guided decoding gives what the definition says, from one cache, whatever the batch looks like."""

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
    by_prefix,
    by_token,
    llama,
    logits_after,
    model_of,
    reward_model,
    reward_of,
    run,
)  # fmt: skip

from registry.methods.draws import inverse_cdf, uniforms
from registry.prefix_scorers import PrefixHead
from tasks.batch import Companion, Sample
from tasks.blocks import PrefixBlocks
from tasks.cards import Judge, Segments
from tasks.guidance import Guidance, NextTokens, Prefixes
from tasks.outputs import prefix_rewards, prefix_values
from tasks.reader import Reader, next_token_logits
from tasks.rollouts import Rollouts
from tasks.sampler import sample
from tasks.trace import Observer


@torch.inference_mode()
def by_the_book(model: Any, score: Any, k: int, number: int, prompt: int, **rule: Any) -> list[int]:
    """The definition, every prefix read from scratch; `score(answer so far, candidates)` gives what is added."""
    u = uniforms(11, str(PROMPTS[prompt]), number, 12)
    answer: list[int] = []
    while len(answer) < 12 and not set(answer) & set(ENDS):
        logits = logits_after(model, PROMPTS[prompt] + answer)
        candidates = sorted(logits.topk(k).indices.tolist())
        whole = logits[candidates] + torch.tensor(score(answer, candidates))
        place = int(inverse_cdf(whole[None], torch.tensor([u[len(answer)]]), **rule))
        answer.append(candidates[place])
    return answer


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("temperature", [0.0, 0.7])
def test_args_is_its_definition_with_every_prefix_read_from_scratch(temperature: float, family: str) -> None:
    base, judge = model_of(family, 0), reward_model(1, family=family)
    samples = 1 if temperature == 0 else 2
    found = run(base, Guidance([(by_prefix(judge), 1.5)], candidates=6), temperature=temperature, samples=samples)
    for prompt, its in enumerate(ITS_PROMPTS):

        def score(answer: list[int], candidates: list[int], its: list[int] = its) -> list[float]:
            ends = [ENDING if c in ENDS else [c] for c in candidates]
            return [1.5 * reward_of(judge, its + answer + end) for end in ends]

        for number in range(samples):
            expected = by_the_book(base, score, 6, number, prompt, temperature=temperature)
            assert list(found[prompt][number].ids) == expected
    assert any(s.finished for row in found for s in row), "the tail behind an end was never read"


@pytest.mark.parametrize("family", FAMILIES)
def test_two_guides_of_next_tokens_are_the_product_of_their_powers(family: str) -> None:
    base, first, second = model_of(family, 0), llama(2), model_of(family, 3)
    found = run(base, Guidance([(by_token(first), 0.8), (by_token(second), -0.3)]))
    for prompt, its in enumerate(ITS_PROMPTS):

        def score(answer: list[int], candidates: list[int], its: list[int] = its) -> list[float]:
            ours, theirs = (logits_after(m, its + answer).log_softmax(-1)[candidates] for m in (first, second))
            added: list[float] = (0.8 * ours - 0.3 * theirs).tolist()
            return added

        for number in range(2):
            assert list(found[prompt][number].ids) == by_the_book(base, score, VOCABULARY, number, prompt)


def test_a_guide_of_strength_nought_leaves_the_policy_token_for_token() -> None:
    base = llama(0)
    alone = run(base, None)
    assert run(base, Guidance([(by_token(llama(2)), 0.0)])) == alone
    alone = run(base, None, top_k=6, temperature=0.7)
    assert run(base, Guidance([(by_prefix(reward_model(1)), 0.0)], candidates=6), temperature=0.7) == alone
    alone = run(base, None, samples=1, temperature=0.0)
    assert run(base, Guidance([(by_prefix(reward_model(1)), 0.0)], candidates=6), samples=1, temperature=0.0) == alone


def test_one_candidate_is_greedy_whatever_the_strength() -> None:
    base = llama(0)
    assert run(base, Guidance([(by_prefix(reward_model(1)), 50.0)], candidates=1)) == run(base, None, top_k=1)


def test_a_constant_reward_changes_nothing() -> None:
    base = llama(0)
    guidance = Guidance([(by_prefix(reward_model(1, scale=0.0)), 5.0)], candidates=6)
    assert run(base, guidance) == run(base, None, top_k=6)


def test_a_great_strength_takes_the_best_candidate_by_reward() -> None:
    base, judge = llama(0), reward_model(1)
    found = run(base, Guidance([(by_prefix(judge, ending=[]), 1e6)], candidates=6), max_new_tokens=1)
    for prompt, its, row in zip(PROMPTS, ITS_PROMPTS, found, strict=True):
        candidates = logits_after(base, prompt).topk(6).indices.tolist()
        best = max(candidates, key=lambda c: reward_of(judge, [*its, c]))
        assert [list(s.ids) for s in row] == [[best]] * 2


@pytest.mark.parametrize("kind", ["prefix", "token"])
def test_neither_the_batch_nor_the_order_of_prompts_changes_a_guided_answer(kind: str) -> None:
    base = llama(0)

    def guidance() -> Guidance:
        if kind == "token":
            return Guidance([(by_token(llama(2)), 1.0)])
        return Guidance([(by_prefix(reward_model(1)), 1.5)], candidates=6)

    whole = run(base, guidance(), samples=5)
    assert run(base, guidance(), samples=5, rows=3) == whole
    assert run(base, guidance(), samples=5, rows=1) == whole
    assert len({len(s.ids) for row in whole for s in row}) > 3, "samples ended side by side"


def test_a_guide_reads_each_prompt_once_and_each_candidate_once() -> None:
    guide = by_prefix(reward_model(1), ending=[])
    found = run(llama(0), Guidance([(guide, 1.5)], candidates=6), samples=3)
    drawn = sum(len(s.ids) for row in found for s in row)
    assert guide.reader.count.prefill == sum(map(len, ITS_PROMPTS))
    assert guide.reader.count.decode == 6 * drawn


def test_the_cache_of_a_guide_is_as_long_as_its_answers_and_one_set_of_candidates() -> None:
    guide = by_prefix(reward_model(1), ending=[])
    run(llama(0), Guidance([(guide, 0.0)], candidates=20), max_new_tokens=100, eos_ids=[])
    assert guide.reader.cache.span <= -(-(max(map(len, ITS_PROMPTS)) + 99 + 20) // 16) * 16


def test_scores_are_standardised_over_the_candidates_where_asked() -> None:
    base = llama(0)

    def drawn(scale: float) -> list[list[Sample]]:
        guidance = Guidance([(by_prefix(reward_model(1, scale)), 2.0)], candidates=6, standardised=True)
        return run(base, guidance)

    assert drawn(3.0) == drawn(300.0)


def test_a_vocabulary_of_candidates_is_the_whole_vocabulary() -> None:
    """ARGS over all tokens at temperature one is token-wise controlled decoding with the same scores."""
    base = llama(0)
    whole = run(base, Guidance([(by_token(llama(2)), 0.7)]))
    for candidates in (VOCABULARY, VOCABULARY + 5):
        assert run(base, Guidance([(by_token(llama(2)), 0.7)], candidates=candidates)) == whole


@pytest.mark.parametrize("family", FAMILIES)
def test_a_prompt_may_fill_the_context_up_to_the_last_new_token(family: str) -> None:
    base, judge = model_of(family, 0), reward_model(1, family=family)
    prompts = [[3] * 244, [6]]
    guide = Prefixes(Reader(prefix_rewards(judge), list(prompts), CPU))
    options: dict[str, Any] = {"keys": ["a", "b"], "samples": 1, "max_new_tokens": 12, "seed": 11, "eos_ids": []}
    found = sample(base, prompts, guidance=Guidance([(guide, 1.5)], candidates=6), **options)
    assert [len(one.ids) for row in found for one in row] == [12, 12]
    with pytest.raises(
        ValueError, match="prompt a: 244 tokens and 13 new ones are more than the model's 256 positions"
    ):
        sample(base, prompts, guidance=Guidance([(guide, 1.5)], candidates=6), **options | {"max_new_tokens": 13})


def a_way(kind: str, judge: Any, speaker: Any) -> Companion:
    """A way to decode, by models of which `judge` reads what a template writes behind an end."""
    tail = Reader(prefix_rewards(judge), ITS_PROMPTS, CPU)
    match kind:
        case "args":
            return Guidance([(Prefixes(tail, ENDING), 1.5)], candidates=6)
        case "genarm":
            return Guidance([(by_token(speaker), 0.8)])
        case "controlled_decoding":
            head = PrefixHead(32, VOCABULARY, 0.0, 1.0)
            torch.nn.init.normal_(head.each, generator=torch.Generator().manual_seed(3))
            return Guidance([(NextTokens(Reader(prefix_values(speaker, head), ITS_PROMPTS, CPU)), 0.5)])
        case "transfer_q":
            scorer = PrefixBlocks(tail, lambda rewards, tokens: rewards, finish=ENDING)
            return Guidance([(Rollouts(Reader(next_token_logits(speaker), ITS_PROMPTS, CPU), scorer, 3), 2.0)], 5)
        case _:
            return Judge(tail, Segments(2.0, beta=1.0, entropy=2.0, shortest=2, longest=5, tries=4), ENDING)


WAYS = ["args", "genarm", "controlled_decoding", "transfer_q", "cards"]


@pytest.mark.parametrize("kind", WAYS)
def test_answers_may_fill_the_positions_of_a_policy_and_of_all_that_guides_it(kind: str) -> None:
    def asked(spare: int) -> list[list[Sample]]:
        base, speaker = model_of("gpt2", 0), model_of("gpt2", 2)
        judge = reward_model(1, family="gpt2")
        # A reward of finished answers reads a whole ending behind the last token, others its tail behind an end.
        behind = len(ENDING) - (kind != "transfer_q")
        for model, prompts, new in ((base, PROMPTS, 12), (speaker, ITS_PROMPTS, 12), (judge, ITS_PROMPTS, 12 + behind)):
            table = model.transformer.wpe.weight
            table.data = table.data[: max(map(len, prompts)) + new + spare].clone()
        # Few rows, so that one begins where another is about to end.
        return run(base, a_way(kind, judge, speaker), samples=4, rows=3, eos_ids=ENDS[2:])

    found = asked(spare=0)
    assert found == asked(spare=100)
    assert max(len(one.ids) for row in found for one in row) == 12 and any(one.finished for row in found for one in row)


@pytest.mark.parametrize("kind", WAYS)
def test_an_answer_may_be_its_end_alone(kind: str) -> None:
    """It is what would have been the first token, of which it is known only then that there are no others."""
    models = llama(0), reward_model(1), llama(2)
    found = run(models[0], a_way(kind, *models[1:]), eos_ids=range(VOCABULARY))
    assert all(len(one.ids) == 1 and one.finished for row in found for one in row)
    if kind in ("genarm", "controlled_decoding"):
        cut = run(models[0], a_way(kind, *models[1:]), eos_ids=[], max_new_tokens=1)
        assert [one.ids for row in found for one in row] == [one.ids for row in cut for one in row]


@torch.inference_mode()
@pytest.mark.parametrize(("weight", "own"), [(0.4, 0.6), (2.0, 1.0), (0.0, 1.0)])
def test_several_models_are_weighed_by_their_log_probabilities_read_from_scratch(weight: float, own: float) -> None:
    base, other = llama(0), llama(3)
    found = run(base, Guidance([(by_token(other), weight)], policy_weight=own))
    for prompt, its in enumerate(ITS_PROMPTS):
        for number in range(2):
            u = uniforms(11, str(PROMPTS[prompt]), number, 12)
            answer: list[int] = []
            while len(answer) < 12 and not set(answer) & set(ENDS):
                ours, theirs = logits_after(base, PROMPTS[prompt] + answer), logits_after(other, its + answer)
                whole = own * ours.log_softmax(-1) + weight * theirs.log_softmax(-1)
                answer.append(int(inverse_cdf(whole[None], torch.tensor([u[len(answer)]]))))
            assert list(found[prompt][number].ids) == answer


@torch.inference_mode()
def test_what_another_model_gives_is_told_as_log_probabilities() -> None:
    base, other = llama(0), llama(3)
    heard: list[Any] = []
    guide = NextTokens(Reader(next_token_logits(other), ITS_PROMPTS, CPU), speaks=True)
    found = run(base, Guidance([(guide, 1.0)], observer=Observer(heard.append)), samples=1)
    for event in heard:
        before = list(found[event["prompt"]][0].ids[: event["step"]])
        its = logits_after(other, ITS_PROMPTS[event["prompt"]] + before).log_softmax(-1)
        for candidate in event["candidates"]:
            assert candidate["scores"] == [pytest.approx(float(its[candidate["id"]]), abs=1e-4)]


@torch.inference_mode()
def test_args_draws_its_first_token_as_often_as_its_law_says() -> None:
    base, judge, many = llama(0), reward_model(1), 4000
    guidance = Guidance([(by_prefix(judge), 1.5)], candidates=6)
    (row,) = sample(
        base, PROMPTS[:1], keys=["one"], guidance=guidance, samples=many, max_new_tokens=1, seed=11, eos_ids=ENDS,
        temperature=0.7,
    )  # fmt: skip
    logits = logits_after(base, PROMPTS[0])
    candidates = sorted(logits.topk(6).indices.tolist())
    given = [reward_of(judge, ITS_PROMPTS[0] + (ENDING if c in ENDS else [c])) for c in candidates]
    law = ((logits[candidates] + 1.5 * torch.tensor(given)) / 0.7).double().softmax(-1)
    drawn = torch.tensor([[s.ids[0] == c for c in candidates] for s in row]).double().mean(0)
    assert float(drawn.sum()) == 1
    assert bool(((drawn - law).abs() <= 4.5 * (law * (1 - law) / many).sqrt() + 1e-9).all())
