"""The sampler draws what the model says, once per prompt prefill, whatever the batch looks like."""

from __future__ import annotations

import itertools
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from peft import LoraConfig, get_peft_model
from transformers import DynamicCache

from registry.methods.draws import inverse_cdf, uniforms
from tasks.batch import Sample
from tasks.reader import Positions
from tasks.sampler import sample
from tasks.slot_cache import SlotCache

STORIES = Path(__file__).parents[3] / "shared" / "data" / "models" / "stories260K"
VOCABULARY = 61
LLAMA: dict[str, Any] = {
    "vocab_size": VOCABULARY,
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 256,
    # Wide enough that the models have opinions: no near-ties for rounding to tip.
    "initializer_range": 0.3,
}


def llama(**changes: Any) -> Any:
    return transformers.LlamaForCausalLM(transformers.LlamaConfig(**LLAMA | changes))


def qwen2() -> Any:
    return transformers.Qwen2ForCausalLM(transformers.Qwen2Config(**LLAMA))


def gpt2() -> Any:
    sizes: dict[str, Any] = {"vocab_size": VOCABULARY, "n_embd": 32, "n_layer": 2, "n_head": 4, "n_positions": 256}
    return transformers.GPT2LMHeadModel(transformers.GPT2Config(**sizes, initializer_range=0.3))


def gpt_neox() -> Any:
    return transformers.GPTNeoXForCausalLM(transformers.GPTNeoXConfig(**LLAMA | {"num_key_value_heads": 4}))


def mistral(window: int) -> Any:
    return transformers.MistralForCausalLM(transformers.MistralConfig(**LLAMA, sliding_window=window))


def eager_llama() -> Any:
    model = llama()
    model.set_attn_implementation("eager")
    return model


def lora() -> Any:
    config = LoraConfig(r=4, target_modules=["q_proj", "v_proj"], init_lora_weights=False)
    return get_peft_model(llama(), config)


@pytest.fixture(autouse=True)
def fixed_weights() -> None:
    torch.manual_seed(0)


def ragged(count: int, longest: int = 11) -> list[list[int]]:
    generator = torch.Generator().manual_seed(count)
    lengths = torch.randint(1, longest + 1, (count,), generator=generator).tolist()
    return [torch.randint(0, VOCABULARY, (length,), generator=generator).tolist() for length in lengths]


def names(prompts: list[list[int]]) -> list[str]:
    return [f"prompt-{number}" for number in range(len(prompts))]


def run(model: Any, prompts: list[list[int]], **changes: Any) -> list[list[Sample]]:
    asked: dict[str, Any] = {
        "keys": names(prompts),
        "samples": 3,
        "seed": 5,
        "max_new_tokens": 12,
        "eos_ids": {7, 8, 9},
    }
    return sample(model, prompts, **asked | changes)


def generate_greedily(model: Any, prompt: list[int], eos_ids: list[int], new: int) -> list[int]:
    model.eval()
    ids = torch.tensor([prompt])
    settings = {"do_sample": False, "max_new_tokens": new, "pad_token_id": 0, "eos_token_id": eos_ids or None}
    out = model.generate(input_ids=ids, attention_mask=torch.ones_like(ids), **settings)
    return list(out[0, len(prompt) :].tolist())


def some_eos(model: Any, prompts: list[list[int]], new: int) -> list[int]:
    """Two tokens that end some greedy responses early, and so let other prompts in."""
    first, second = (generate_greedily(model, prompt, [], new) for prompt in prompts[:2])
    return [first[3], second[8]]


@pytest.mark.parametrize("build", [llama, eager_llama, qwen2, gpt2, gpt_neox, lora, lambda: mistral(64)])
def test_greedy_samples_are_those_of_generate(build: Callable[[], Any]) -> None:
    model = build()
    prompts = ragged(21)
    eos_ids = some_eos(model, prompts, 15)
    greedy = {"temperature": 0, "samples": 1, "max_new_tokens": 15, "eos_ids": eos_ids}
    drawn = run(model, prompts, rows=4, **greedy)
    for prompt, [one] in zip(prompts, drawn, strict=True):
        assert list(one.ids) == generate_greedily(model, prompt, eos_ids, 15)


def test_samples_are_the_models_own_distributions_at_the_samples_own_numbers() -> None:
    model = llama().eval()
    prompts = ragged(5)
    drawn = run(model, prompts, rows=4)
    for key, prompt, group in zip(names(prompts), prompts, drawn, strict=True):
        for number, one in enumerate(group):
            numbers = torch.from_numpy(uniforms(5, key, number, 12))
            ids = list(prompt)
            for at, token in enumerate(one.ids):
                with torch.inference_mode():
                    logits = model(torch.tensor([ids])).logits[:, -1]
                assert inverse_cdf(logits, numbers[at : at + 1]).item() == token
                ids.append(token)


@pytest.mark.parametrize("rule", [{}, {"top_k": 9, "temperature": 0.8}, {"top_p": 0.7}])
def test_samples_do_not_depend_on_the_batch(rule: dict[str, Any]) -> None:
    model = llama()
    prompts = ragged(19)
    keys = names(prompts)
    drawn = run(model, prompts, rows=64, **rule)
    assert any(one.finished for group in drawn for one in group)
    for rows in (1, 3):
        assert run(model, prompts, rows=rows, **rule) == drawn
    order = torch.randperm(19, generator=torch.Generator().manual_seed(2)).tolist()
    mixed = run(model, [prompts[i] for i in order], keys=[keys[i] for i in order], rows=5, **rule)
    assert mixed == [drawn[i] for i in order]
    halves = [run(model, prompts[part], keys=keys[part], **rule) for part in (slice(7), slice(7, None))]
    assert halves[0] + halves[1] == drawn


def test_a_sample_does_not_depend_on_how_many_there_are() -> None:
    model = llama()
    prompts = ragged(6)
    assert [group[:2] for group in run(model, prompts, samples=5)] == run(model, prompts, samples=2)


def test_another_seed_draws_other_samples() -> None:
    model = llama()
    prompts = ragged(6)
    assert run(model, prompts, seed=1) != run(model, prompts, seed=2)


def test_two_steps_follow_the_joint_distribution() -> None:
    model = llama(vocab_size=3).eval()
    draws = 6000
    [drawn] = run(model, [[0, 2, 1]], samples=draws, max_new_tokens=2, eos_ids=(), rows=500)
    with torch.inference_mode():
        first = model(torch.tensor([[0, 2, 1]])).logits[0, -1].double().softmax(-1)
        nexts = torch.tensor([[0, 2, 1, token] for token in range(3)])
        second = model(nexts).logits[:, -1].double().softmax(-1)
    joint = first[:, None] * second
    counts = torch.zeros(3, 3)
    for one in drawn:
        counts[one.ids] += 1
    # Four standard errors in each of the nine cells.
    error = (joint * (1 - joint) / draws).sqrt()
    assert bool(((counts / draws - joint).abs() < 4 * error).all())


def test_a_response_ends_at_the_first_end_of_sequence_token() -> None:
    eos_ids = {7, 8, 9}
    drawn = [one for group in run(llama(), ragged(30)) for one in group]
    assert {one.finished for one in drawn} == {True, False}
    for one in drawn:
        assert not eos_ids & set(one.ids[:-1])
        assert one.finished == (one.ids[-1] in eos_ids)
        assert one.finished or len(one.ids) == 12


def test_every_token_may_end_a_response() -> None:
    drawn = run(llama(), ragged(30), eos_ids=range(VOCABULARY), rows=4)
    assert all(len(one.ids) == 1 and one.finished for group in drawn for one in group)


def test_each_prompt_is_prefilled_once_and_ended_samples_cost_nothing() -> None:
    prompts = ragged(40)
    count = Positions()
    drawn = run(llama(), prompts, rows=7, samples=5, count=count)
    assert count.prefill == sum(map(len, prompts))
    # A sample's first token comes from the prefill, each later one from one decoded position.
    assert count.decode == sum(len(one.ids) - 1 for group in drawn for one in group)


def test_like_lengths_are_prefilled_together() -> None:
    count = Positions()
    run(llama(), [[1] * (1 + number % 2 * 30) for number in range(64)], count=count)
    assert count.padding == 0


def test_the_cache_grows_with_the_responses() -> None:
    model = llama()
    prompts = ragged(5)
    greedy = {"temperature": 0, "samples": 1, "max_new_tokens": 240, "eos_ids": ()}
    drawn = run(model, prompts, rows=2, **greedy)
    for prompt, [one] in zip(prompts, drawn, strict=True):
        assert list(one.ids) == generate_greedily(model, prompt, [], 240)


def test_an_adapter_changes_what_is_drawn() -> None:
    model = lora()
    prompts = ragged(8)
    adapted = run(model, prompts)
    with model.disable_adapter():
        assert run(model, prompts) != adapted


def test_bfloat16_models_sample_too() -> None:
    drawn = run(llama().to(torch.bfloat16), ragged(8), rows=4)
    assert all(0 <= token < VOCABULARY for group in drawn for one in group for token in one.ids)


def test_training_mode_is_put_back_module_by_module() -> None:
    model = llama(attention_dropout=0.5).train()
    model.lm_head.eval()
    modes = [module.training for module in model.modules()]
    prompts = ragged(4)
    drawn = run(model, prompts)
    assert [module.training for module in model.modules()] == modes
    assert run(model.eval(), prompts) == drawn


def test_progress_counts_ended_samples_up_to_all() -> None:
    heard: list[tuple[int, int]] = []
    run(llama(), ragged(9), rows=4, on_progress=lambda *counts: heard.append(counts))
    assert heard == sorted(set(heard)) and heard[-1] == (27, 27)


def test_no_prompts_give_no_samples() -> None:
    assert run(llama(), []) == []


@pytest.mark.parametrize(
    ("prompts", "changes", "message"),
    [
        ([[1, 2], []], {}, "prompt-1 is empty"),
        ([[1]], {"temperature": 0}, "greedy decoding has one outcome"),
        ([[1]], {"samples": 0}, "samples is 0"),
        ([[1]], {"max_new_tokens": 0}, "max_new_tokens is 0"),
        ([[1]], {"rows": 0}, "rows is 0"),
        ([[1]], {"keys": []}, "1 prompts came with 0 keys"),
        (
            [[1], [1] * 245],
            {},
            "prompt-1: 245 tokens and 12 new ones are more than the model's 256",
        ),
    ],
)
def test_a_request_that_cannot_be_met_is_refused(
    prompts: list[list[int]], changes: dict[str, Any], message: str
) -> None:
    with pytest.raises(ValueError, match=message):
        run(llama(), prompts, **changes)


def test_a_sliding_window_is_refused_unless_everything_fits_inside() -> None:
    prompts = [[1] * 20]
    with pytest.raises(ValueError, match="31 positions that a layer of the model attends"):
        run(mistral(31), prompts)
    assert len(run(mistral(32), prompts)[0]) == 3


def test_a_recurrent_model_is_refused() -> None:
    model = transformers.MambaForCausalLM(transformers.MambaConfig(vocab_size=11, hidden_size=8, num_hidden_layers=1))
    with pytest.raises(ValueError, match=r"MambaForCausalLM has .*a recurrent state"):
        run(model, [[1]])


def test_logits_that_are_not_finite_are_reported_with_their_prompt() -> None:
    model = llama()
    torch.nn.init.constant_(model.lm_head.weight, float("nan"))
    with pytest.raises(ValueError, match="prompt prompt-0: the model gave logits that are not finite"):
        run(model, [[1]])


@pytest.mark.skipif(not STORIES.is_dir(), reason=f"no stories260K model in {STORIES}")
def test_a_trained_model_is_sampled_as_generate_would() -> None:
    model = transformers.AutoModelForCausalLM.from_pretrained(STORIES)
    prompts = [[1, *prompt] for prompt in ragged(12)]
    drawn = run(model, prompts, temperature=0, samples=1, max_new_tokens=40, eos_ids=[2])
    for prompt, [one] in zip(prompts, drawn, strict=True):
        assert list(one.ids) == generate_greedily(model, prompt, [2], 40)
    assert run(model, prompts, rows=64) == run(model, prompts, rows=5)
    groups = run(model, prompts, samples=4)
    assert len(set(itertools.chain(*groups))) > len(prompts)


def test_a_cache_that_outgrows_what_was_reckoned_with_doubles() -> None:
    """As for prompts that come later and are longer."""
    cache = SlotCache(1, room=16, most=32, device=torch.device("cpu"))
    layer = DynamicCache()
    layer.update(torch.zeros(1, 1, 30, 4), torch.zeros(1, 1, 30, 4), 0)
    cache.fill([0], layer, [0])
    sizes = set()
    for length in range(30, 200):
        cache.step(torch.tensor([length]), length)
        sizes.add(cache.capacity)
    assert sizes == {32, 64, 128, 256}
