"""Beams are the best hypotheses the model allows: those of other engines, of enumeration and of sums done by hand."""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterator
from typing import Any

import pytest
import tiny
import torch
import transformers

from tasks.beam import Beam, beam_search
from tasks.sampler import sample

# The hand-made chain: what follows the start and each of a and b.
END, A, B, START = range(4)
CHAIN = [[1.0, 0.0, 0.0, 0.0], [0.9, 0.05, 0.05, 0.0], [0.1, 0.6, 0.3, 0.0], [0.5, 0.3, 0.2, 0.0]]


@pytest.fixture(autouse=True, scope="module")
def one_thread() -> Iterator[None]:
    """Threads cost models this small more than they give, most of all on a busy machine."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


def llama(vocabulary: int = 61, seed: int = 0, **changes: Any) -> Any:
    torch.manual_seed(seed)
    # Wide enough that the models have opinions: no near-ties for rounding to tip.
    settings = {"vocab_size": vocabulary, "initializer_range": 0.3, "tie_word_embeddings": False, "eos_token_id": None}
    return transformers.LlamaForCausalLM(tiny.config(**settings | changes)).eval()


def markov(logits: list[list[float]]) -> Any:
    """A Llama whose layers add nothing, so that `logits[i]` follow token i whatever came before it."""
    width = 8
    sizes = {"num_hidden_layers": 1, "num_attention_heads": 1, "num_key_value_heads": 1}
    model = llama(len(logits), hidden_size=width, intermediate_size=width, rms_norm_eps=1e-12, **sizes)
    with torch.no_grad():
        for name, weights in model.named_parameters():
            weights.fill_(float("norm" in name))
        model.model.embed_tokens.weight.copy_(torch.eye(width)[: len(logits)])
        # The norm makes a one-hot vector sqrt(width) long.
        model.lm_head.weight[:, : len(logits)] = torch.tensor(logits).T / math.sqrt(width)
    return model


def chain(table: list[list[float]]) -> Any:
    return markov([[math.log(max(p, 1e-12)) for p in row] for row in table])


def ragged(count: int, vocabulary: int = 61) -> list[list[int]]:
    generator = torch.Generator().manual_seed(count)
    lengths = torch.randint(1, 10, (count,), generator=generator).tolist()
    return [torch.randint(0, vocabulary, (length,), generator=generator).tolist() for length in lengths]


def run(model: Any, prompts: list[list[int]], **changes: Any) -> list[list[Beam]]:
    asked: dict[str, Any] = {"beams": 4, "max_new_tokens": 10, "eos_ids": {3, 7, 8, 9}}
    return beam_search(model, prompts, **asked | changes)


def ids(beams: list[Beam]) -> list[list[int]]:
    return [beam.ids for beam in beams]


def per_token(beam: Beam) -> float:
    return beam.log_prob / len(beam.ids)


def log_prob(model: Any, prompt: list[int], response: list[int], temperature: float = 1.0) -> float:
    """The response's log-probability from one pass over all of it, without a cache."""
    with torch.inference_mode():
        logits = model(torch.tensor([prompt + response])).logits[0, len(prompt) - 1 : -1]
    return float((logits / temperature).log_softmax(-1).gather(1, torch.tensor(response)[:, None]).sum())


@pytest.mark.parametrize("eos_ids", [[], [3], [1, 4, 7]])
@pytest.mark.parametrize("vocabulary", [16, 61])
def test_plain_beams_are_those_of_generate(vocabulary: int, eos_ids: list[int]) -> None:
    model = llama(vocabulary, seed=len(eos_ids))
    prompts = ragged(5, vocabulary)
    found = run(model, prompts, eos_ids=eos_ids, rows=8)
    if vocabulary == 16 and eos_ids:
        assert {beam.finished for beams in found for beam in beams} == {True, False}
    for prompt, beams in zip(prompts, found, strict=True):
        given = torch.tensor([prompt])
        out = model.generate(
            given, attention_mask=torch.ones_like(given), max_new_tokens=10, num_beams=4, num_return_sequences=4,
            do_sample=False, length_penalty=1.0, early_stopping=False, eos_token_id=eos_ids or None, pad_token_id=0,
            return_dict_in_generate=True, output_scores=True,
        )  # fmt: skip
        for beam, row, score in zip(beams, out.sequences[:, len(prompt) :].tolist(), out.sequences_scores, strict=True):
            assert row[: len(beam.ids)] == beam.ids
            # It pads with the token 0 or, where that counts as none, with the first end-of-sequence token.
            assert set(row[len(beam.ids) :]) <= {0, *eos_ids[:1]}
            assert per_token(beam) == pytest.approx(score.item(), abs=1e-4)


@pytest.mark.parametrize(
    ("groups", "prompt", "expected"),
    [
        (4, 0, [[0, 3, 6, 2, 3, 6], [2, 2, 3, 6, 2, 3], [3, 6, 2, 3, 6, 2], [7, 4, 2, 0, 0, 0]]),
        (4, 5, [[1, 6, 2, 3, 6, 2], [4, 2, 0, 0, 0, 0], [4, 2, 3, 6, 2, 3], [6, 3, 6, 2, 3, 6]]),
        (2, 0, [[2, 3, 6, 2, 7, 1], [2, 3, 6, 2, 7, 4], [3, 6, 3, 6, 2, 3], [3, 6, 3, 6, 3, 6]]),
        (2, 5, [[1, 6, 2, 3, 4, 2], [1, 6, 2, 3, 6, 2], [4, 2, 3, 6, 2, 3], [6, 2, 3, 6, 2, 3]]),
    ],
)
def test_diverse_beams_are_those_of_transformers_4(groups: int, prompt: int, expected: list[list[int]]) -> None:
    # What transformers 4.46.3, the last line with group beam search in it, gave for this very model
    # with num_beams=4 and diversity_penalty=1.0; without end-of-sequence tokens, which it leaves out
    # of the penalty.
    model = markov([[2 * math.sin(1 + 3 * i + 5 * j * j) for j in range(8)] for i in range(8)])
    [beams] = run(model, [[prompt]], groups=groups, diversity=1.0, max_new_tokens=6, eos_ids=())
    assert sorted(ids(beams)) == expected


@pytest.mark.parametrize("eos_ids", [(), (2,)])
def test_a_beam_as_wide_as_the_tree_finds_every_response_in_order(eos_ids: tuple[int, ...]) -> None:
    model, prompt = llama(5), [1, 4]
    every = {
        response[: 1 + next((i for i, token in enumerate(response) if token in eos_ids), 2)]
        for response in itertools.product(range(5), repeat=3)
    }
    # Of the 125 paths 16 ways of 5 go on past the end-of-sequence token: 1 + 4 + 16 * 5 responses are left.
    assert len(every) == (85 if eos_ids else 125)
    expected = sorted(every, key=lambda response: -log_prob(model, prompt, list(response)) / len(response))
    [beams] = run(model, [prompt], beams=125, rows=125, max_new_tokens=3, eos_ids=eos_ids)
    assert ids(beams) == [list(response) for response in expected]
    assert sum(math.exp(beam.log_prob) for beam in beams) == pytest.approx(1, abs=1e-5)


def test_only_the_last_step_may_cut_for_the_best_to_be_found() -> None:
    model, prompt = llama(5), [1, 4]
    [every] = run(model, [prompt], beams=125, rows=125, max_new_tokens=3, eos_ids=())
    # 25 beams keep all that there are after two steps.
    assert ids(run(model, [prompt], beams=25, max_new_tokens=3, eos_ids=())[0]) == ids(every)[:25]


def test_one_beam_is_greedy_decoding() -> None:
    model, prompts = llama(16), ragged(12, 16)
    asked: dict[str, Any] = {"max_new_tokens": 10, "eos_ids": {3, 7}}
    greedy = sample(model, prompts, keys=list(map(str, prompts)), samples=1, seed=0, temperature=0, **asked)
    found = run(model, prompts, beams=1, rows=5, **asked)
    assert {beam.finished for [beam] in found} == {True, False}
    assert [(beam.ids, beam.finished) for [beam] in found] == [(list(one.ids), one.finished) for [one] in greedy]


def test_a_longer_response_may_overtake_an_ended_one_and_the_search_ends_when_none_can() -> None:
    # Step 1 keeps `end` (ln 0.5) aside and goes on with a and b. Step 2 ends a (ln 0.27, which is
    # -0.655 a token, above -0.693), and what is left is at most b a (ln 0.12, -1.060 a token).
    for max_new_tokens in (2, 3, 40):
        [[first, second]] = run(chain(CHAIN), [[START]], beams=2, max_new_tokens=max_new_tokens, eos_ids={END})
        assert (first.ids, second.ids) == ([A, END], [END])
        assert first.finished and second.finished
        assert first.log_prob == pytest.approx(math.log(0.27), abs=1e-5)
        assert second.log_prob == pytest.approx(math.log(0.5), abs=1e-5)


def test_an_end_that_is_not_among_the_best_candidates_is_no_response() -> None:
    # `end` (ln 0.4 = -0.916) is second to a, though a a (ln 0.13, -1.020 a token) is worse in the end.
    table = [[1.0, 0.0, 0.0, 0.0], [0.25, 0.26, 0.25, 0.24], [1.0, 0.0, 0.0, 0.0], [0.4, 0.5, 0.1, 0.0]]
    [[beam]] = run(chain(table), [[START]], beams=1, max_new_tokens=2, eos_ids={END})
    assert beam.ids == [A, A] and not beam.finished


def test_at_the_last_token_the_best_candidates_are_the_responses_ended_or_not() -> None:
    [beams] = run(chain(CHAIN), [[START]], beams=2, max_new_tokens=1, eos_ids={END})
    assert [(beam.ids, beam.finished) for beam in beams] == [([END], True), ([A], False)]


@pytest.mark.parametrize(
    ("groups", "diversity", "expected"),
    # a (0.5) loses to b (0.3) once it costs more than ln(5/3) = 0.511; taken twice, it costs twice.
    [(2, 0.50, [[A], [A]]), (2, 0.52, [[A], [B]]), (3, 0.25, [[A], [A], [A]]), (3, 0.26, [[A], [A], [B]])],
)
def test_a_token_costs_the_penalty_for_each_time_that_earlier_groups_chose_it(
    groups: int, diversity: float, expected: list[list[int]]
) -> None:
    model = chain([[0.2, 0.5, 0.3]] * 3)
    [beams] = run(model, [[0]], beams=groups, groups=groups, diversity=diversity, max_new_tokens=1, eos_ids=())
    assert ids(beams) == expected
    # The penalty chooses; it is no part of what the model thinks.
    chances = {A: 0.5, B: 0.3}
    assert [beam.log_prob for beam in beams] == pytest.approx([math.log(chances[i]) for [i] in expected], abs=1e-5)


def test_the_end_of_a_response_is_penalised_too_and_an_ended_group_penalises_nothing_more() -> None:
    # Group 1 ends at once. `end` then costs group 2 ln 0.5 - 1 = -1.693 against ln 0.3 = -1.204 for
    # a, and one step later nothing.
    [beams] = run(chain(CHAIN), [[START]], beams=2, groups=2, diversity=1.0, eos_ids={END})
    assert ids(beams) == [[A, END], [END]]


def test_groups_without_a_penalty_each_repeat_the_narrower_search() -> None:
    model, prompts = llama(16), ragged(6, 16)
    narrow = run(model, prompts, beams=2)
    for found, expected in zip(run(model, prompts, beams=6, groups=3), narrow, strict=True):
        assert ids(found) == [beam.ids for beam in expected for _ in range(3)]


def test_the_first_group_searches_as_if_it_were_alone() -> None:
    model, prompts = llama(16), ragged(6, 16)
    for found, alone in zip(
        run(model, prompts, beams=6, groups=3, diversity=1.0), run(model, prompts, beams=2), strict=True
    ):
        assert all(beam.ids in ids(found) for beam in alone)


def test_a_large_penalty_makes_the_groups_differ_at_every_position() -> None:
    model, prompts = llama(), ragged(6)
    found = run(model, prompts, groups=4, diversity=100.0, eos_ids=())
    for prompt, beams in zip(prompts, found, strict=True):
        assert all(len(set(tokens)) == 4 for tokens in zip(*ids(beams), strict=True))
        with torch.inference_mode():
            best = model(torch.tensor([prompt])).logits[0, -1].topk(4).indices
        assert {beam.ids[0] for beam in beams} == set(best.tolist())


@pytest.mark.parametrize("search", [{}, {"groups": 2, "diversity": 0.5}, {"groups": 4, "diversity": 1.0}])
def test_log_probabilities_are_the_models_own_and_order_the_responses(search: dict[str, Any]) -> None:
    # What a row's cache holds after many moves shows in them.
    model, prompts = llama(16), ragged(7, 16)
    for prompt, beams in zip(prompts, run(model, prompts, temperature=0.8, rows=8, **search), strict=True):
        assert len(beams) == 4
        assert [per_token(beam) for beam in beams] == sorted(map(per_token, beams), reverse=True)
        for beam in beams:
            assert beam.log_prob == pytest.approx(log_prob(model, prompt, beam.ids, 0.8), abs=1e-4)


@pytest.mark.parametrize("search", [{}, {"groups": 2, "diversity": 0.5}, {"groups": 4, "diversity": 1.0}])
def test_a_prompts_beams_do_not_depend_on_the_batch(search: dict[str, Any]) -> None:
    model, prompts = llama(16), ragged(9, 16)
    alone = [ids(run(model, [prompt], **search)[0]) for prompt in prompts]
    assert any(len(response) < 10 for beams in alone for response in beams)
    for rows in (4, 11, 64):
        assert [ids(beams) for beams in run(model, prompts, rows=rows, **search)] == alone
    assert [ids(beams) for beams in run(model, prompts[::-1], **search)] == alone[::-1]


def test_the_temperature_divides_the_logits() -> None:
    model, prompts = llama(16), ragged(6, 16)
    cool = run(model, prompts, temperature=0.5)
    with torch.no_grad():
        model.lm_head.weight *= 2
    assert run(model, prompts) == cool


def test_a_response_ends_at_the_first_end_of_sequence_token() -> None:
    eos_ids = {3, 7, 8, 9}
    for beam in itertools.chain(*run(llama(16), ragged(12, 16))):
        assert not eos_ids & set(beam.ids[:-1])
        assert beam.finished == (beam.ids[-1] in eos_ids)
        assert beam.finished or len(beam.ids) == 10


def test_every_token_may_end_a_response() -> None:
    [beams] = run(llama(), [[1, 2]], eos_ids=range(61))
    assert [(len(beam.ids), beam.finished) for beam in beams] == [(1, True)] * 4


def test_equal_candidates_go_by_lowest_token() -> None:
    model = llama(5000)
    torch.nn.init.zeros_(model.lm_head.weight)
    [beams] = run(model, [[1]], max_new_tokens=1, eos_ids=())
    assert ids(beams) == [[0], [1], [2], [3]]


def test_there_are_no_more_responses_than_the_model_gives_a_chance_to() -> None:
    model = llama()

    def forbid_all_but_two(module: Any, given: Any, out: Any) -> None:
        out.logits[..., 2:] = -math.inf

    model.register_forward_hook(forbid_all_but_two)
    assert sorted(ids(run(model, [[1]], max_new_tokens=1, eos_ids=())[0])) == [[0], [1]]


def test_each_prompt_is_prefilled_once_and_only_live_hypotheses_are_decoded() -> None:
    model, prompts = llama(), ragged(40)
    shapes: list[tuple[int, int]] = []
    model.register_forward_pre_hook(
        lambda module, args, given: shapes.append(tuple(given["input_ids"].shape)), with_kwargs=True
    )
    run(model, [[*prompt, 1, 2][:2] for prompt in prompts], rows=10, max_new_tokens=3, eos_ids=())
    assert sum(rows for rows, width in shapes if width == 2) == 40
    # Two prompts at a time; a response's first token comes from the prefill, each later one from a row.
    assert [rows for rows, width in shapes if width == 1] == [8] * 40


def test_the_cache_grows_with_the_responses() -> None:
    model, prompt = llama(), [1, 2, 3]
    [beams] = run(model, [prompt], beams=2, max_new_tokens=140, eos_ids=())
    assert beams[0].log_prob == pytest.approx(log_prob(model, prompt, beams[0].ids), abs=1e-2)


def test_training_mode_is_put_back_module_by_module() -> None:
    model = llama(attention_dropout=0.5).train()
    model.lm_head.eval()
    modes = [module.training for module in model.modules()]
    found = run(model, [[1, 2]])
    assert [module.training for module in model.modules()] == modes
    assert run(model.eval(), [[1, 2]]) == found


def test_progress_counts_ended_prompts_up_to_all() -> None:
    heard: list[tuple[int, int]] = []
    run(llama(), ragged(9), rows=8, on_progress=lambda *counts: heard.append(counts))
    assert heard == sorted(set(heard)) and heard[-1] == (9, 9)


def test_no_prompts_give_no_beams() -> None:
    assert run(llama(), []) == []


@pytest.mark.parametrize(
    ("prompts", "changes", "message"),
    [
        ([[1]], {"beams": 0}, "beams is 0"),
        ([[1]], {"groups": 0}, "groups is 0"),
        ([[1]], {"max_new_tokens": 0}, "max_new_tokens is 0"),
        ([[1]], {"groups": 3}, "4 beams cannot be shared out equally among 3 groups"),
        ([[1]], {"diversity": -1.0}, r"diversity is -1\.0"),
        ([[1]], {"temperature": 0.0}, r"temperature is 0\.0; .*one beam is greedy decoding"),
        ([[1]], {"rows": 3}, "rows is 3; the 4 beams of one prompt need a row each"),
        ([[1, 2], []], {}, "prompt 1 is empty"),
        ([[1] * 503], {}, "prompt 0: 503 tokens and 10 new ones are more than the model's 512 positions"),
    ],
)
def test_a_request_that_cannot_be_met_is_refused(
    prompts: list[list[int]], changes: dict[str, Any], message: str
) -> None:
    with pytest.raises(ValueError, match=message):
        run(llama(), prompts, **changes)


def test_logits_that_are_not_finite_are_reported_with_their_prompt() -> None:
    model = llama()
    torch.nn.init.constant_(model.lm_head.weight, math.nan)
    with pytest.raises(ValueError, match="prompt 0: the model gave logits that are not finite"):
        run(model, [[1]])
