"""Every row of a batch runs on its own soup, as if that soup had been merged into the weights."""

from __future__ import annotations

import copy
from collections.abc import Sequence
from typing import Any

import pytest
import torch
import transformers
from peft import LoraConfig, get_peft_model
from torch import Tensor
from transformers.pytorch_utils import Conv1D

from registry.beside import fold
from registry.methods.soup import Factor, delta
from specs.spread import simplex
from tasks.batch import Sample
from tasks.row_lora import install
from tasks.sampler import sample

VOCABULARY = 61
KINDS = ("q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj")


def llama(**changes: Any) -> Any:
    settings: dict[str, Any] = {
        "vocab_size": VOCABULARY, "hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2,
        "num_attention_heads": 4, "num_key_value_heads": 2, "max_position_embeddings": 256, "initializer_range": 0.3,
        "tie_word_embeddings": True,
    }  # fmt: skip
    torch.manual_seed(0)
    return transformers.LlamaForCausalLM(transformers.LlamaConfig(**settings | changes)).eval()


def expert(model: Any, seed: int, *, rank: int = 3, chain: int = 1, kinds: Sequence[str] = KINDS) -> Any:
    """Adapters that change what the model says: about a third of a weight's own size."""
    generator = torch.Generator().manual_seed(seed)
    return {
        name: [
            Factor(
                torch.randn(rank, module.in_features, generator=generator) * 0.2,
                torch.randn(module.out_features, rank, generator=generator) * 0.2,
                1.5,
            )
            for _ in range(chain)
        ]
        for name, module in model.named_modules()
        if name.rpartition(".")[2] in kinds
    }


def three(model: Any) -> list[Any]:
    """Experts of other ranks, of a chain, of other modules."""
    return [expert(model, 1), expert(model, 2, rank=4, chain=2), expert(model, 3, rank=2, kinds=("v_proj", "up_proj"))]


def merged(model: Any, update: Any) -> Any:
    model = copy.deepcopy(model)
    for name, [part] in update.items():
        model.get_submodule(name).weight.data += part.B @ part.A
    return model


@torch.inference_mode()
def logits(model: Any, ids: Tensor) -> Tensor:
    return model(ids).logits


def tokens(rows: int, length: int = 9) -> Tensor:
    return torch.randint(0, VOCABULARY, (rows, length), generator=torch.Generator().manual_seed(4))


def near(found: Tensor, wanted: Tensor) -> None:
    torch.testing.assert_close(found, wanted, rtol=1e-5, atol=1e-5)


def test_each_row_has_the_logits_of_the_model_merged_with_its_weights() -> None:
    model = llama()
    experts = three(model)
    grid = simplex(3, 5)
    ids = tokens(len(grid))
    with install(model, experts) as weights:
        weights.set(torch.tensor(grid))
        found = logits(model, ids)
    plain = logits(model, ids)
    for row, point in enumerate(grid):
        near(found[row], logits(merged(model, delta(experts, point)), ids[row : row + 1])[0])
        assert (found[row] - plain[row]).abs().max() > 0.5


def test_the_head_that_shares_the_embeddings_weight_can_be_adapted_alone() -> None:
    model = llama()
    head = {"lm_head": [Factor(torch.randn(2, 32), torch.randn(VOCABULARY, 2), 0.1)]}
    ids = tokens(2)
    with install(model, [head]) as weights, torch.inference_mode():
        weights.set(torch.tensor([[1.0], [0.0]]))
        found = model(ids).logits
        hidden = model.model(ids).last_hidden_state
    [part] = head["lm_head"]
    near(found[0], (logits(model, ids) + 0.1 * hidden @ part.A.T @ part.B.T)[0])
    near(found[1], logits(model, ids)[1])


def test_layers_that_hold_their_weights_the_other_way_round_are_no_exception() -> None:
    config = transformers.GPT2Config(vocab_size=VOCABULARY, n_embd=32, n_layer=2, n_head=4, initializer_range=0.3)
    torch.manual_seed(0)
    model = transformers.GPT2LMHeadModel(config).eval()
    before = {name: weight.clone() for name, weight in model.state_dict().items()}
    layers = {name: m.weight.shape for name, m in model.named_modules() if isinstance(m, Conv1D)}
    assert len(layers) == 8
    update = {
        name: [Factor(torch.randn(3, inputs) * 0.2, torch.randn(outputs, 3) * 0.2, 1.5)]
        for name, (inputs, outputs) in layers.items()
    }
    whole = copy.deepcopy(model)
    fold(whole, update)
    ids = tokens(2)
    with install(model, [update]) as weights:
        weights.set(torch.tensor([[1.0], [0.0]]))
        found = logits(model, ids)
    near(found[0], logits(whole, ids)[0])
    near(found[1], logits(model, ids)[1])
    assert all(torch.equal(weight, before[name]) for name, weight in model.state_dict().items())


def test_a_layer_with_a_bias_keeps_it() -> None:
    model = llama(attention_bias=True)
    for module in model.modules():
        if getattr(module, "bias", None) is not None:
            torch.nn.init.normal_(module.bias)
    experts = [expert(model, 1)]
    with install(model, experts) as weights:
        weights.set(torch.ones(2, 1))
        found = logits(model, tokens(2))
    near(found, logits(merged(model, delta(experts, [1.0])), tokens(2)))


def test_adapters_of_peft_are_the_rows_of_the_batch() -> None:
    model = get_peft_model(llama(), LoraConfig(r=4, lora_alpha=6, target_modules=list(KINDS), init_lora_weights=False))
    model.add_adapter("other", LoraConfig(r=8, lora_alpha=4, target_modules=["v_proj"], init_lora_weights=False))
    model.eval()
    ids = tokens(2)
    wanted, experts = [], []
    for row, adapter in enumerate(["default", "other"]):
        model.set_adapter(adapter)
        wanted.append(logits(model, ids[row : row + 1])[0].clone())
        experts.append(
            {
                name.removeprefix("base_model.model."): [
                    Factor(m.lora_A[adapter].weight.detach(), m.lora_B[adapter].weight.detach(), m.scaling[adapter])
                ]
                for name, m in model.named_modules()
                if adapter in getattr(m, "lora_A", {})
            }
        )
    plain = model.unload()
    with install(plain, experts) as weights:
        weights.set(torch.eye(2))
        near(logits(plain, ids), torch.stack(wanted))


def test_taking_the_experts_off_leaves_the_model_as_it_was_to_the_bit() -> None:
    model = llama()
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    plain = logits(model, tokens(3))
    handle = install(model, three(model))
    handle.set(torch.full((3, 3), 1 / 3))
    logits(model, tokens(3))
    handle.remove()
    handle.remove()
    for name, tensor in model.state_dict().items():
        assert torch.equal(tensor, before[name]) and tensor.is_contiguous()
    assert model.lm_head.weight is model.get_input_embeddings().weight
    assert torch.equal(logits(model, tokens(3)), plain)


def test_while_they_lie_there_the_model_still_says_its_own_weights() -> None:
    model = llama()
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    with install(model, three(model)):
        assert all(torch.equal(tensor, before[name]) for name, tensor in model.state_dict().items())


# Sampling

POINTS = [(1.0, 0.0), (0.7, 0.3), (0.5, 0.5), (0.0, 1.0)]
KEYS = [f"prompt-{n}" for n in range(7)]
PROMPTS = [
    torch.randint(0, VOCABULARY, (n + 2,), generator=torch.Generator().manual_seed(n)).tolist() for n in range(7)
]


def draw(model: Any, prompts: list[list[int]], keys: list[str], **changes: Any) -> list[list[Sample]]:
    asked: dict[str, Any] = {"samples": 3, "seed": 5, "max_new_tokens": 12, "eos_ids": range(9), "rows": 64}
    return sample(model, prompts, keys=keys, **asked | changes)


def draw_grid(model: Any, experts: list[Any], prompts: list[list[int]], keys: list[str], **changes: Any) -> Any:
    """By weighting, its samples of every prompt; all drawn in one batch."""
    table = torch.tensor(POINTS).repeat_interleave(len(prompts), dim=0)
    with install(model, experts) as weights:
        many = len(POINTS)
        drawn = draw(model, prompts * many, keys * many, on_rows=lambda rows: weights.set(table[list(rows)]), **changes)
    return [drawn[start : start + len(prompts)] for start in range(0, len(drawn), len(prompts))]


def test_a_grid_sampled_in_one_batch_is_each_merged_model_sampled_alone() -> None:
    model = llama()
    experts = three(model)[:2]
    found = draw_grid(model, experts, PROMPTS, KEYS)
    for point, drawn in zip(POINTS, found, strict=True):
        assert drawn == draw(merged(model, delta(experts, point)), PROMPTS, KEYS)
    # There is something to tell apart, and rows were closed up on the way.
    assert len({str(drawn) for drawn in found}) == len(POINTS)
    assert {one.finished for drawn in found for group in drawn for one in group} == {True, False}


def test_a_grids_samples_do_not_depend_on_who_shares_the_batch() -> None:
    model = llama()
    experts = three(model)[:2]
    found = draw_grid(model, experts, PROMPTS, KEYS)
    for rows in (1, 5):
        assert draw_grid(model, experts, PROMPTS, KEYS, rows=rows) == found
    some = draw_grid(model, experts, PROMPTS[2:4], KEYS[2:4])
    assert some == [drawn[2:4] for drawn in found]


def test_the_sampler_says_which_prompt_is_in_each_row_before_every_pass() -> None:
    model = llama()
    said: list[list[int]] = []
    passes: list[int] = []
    hook = model.register_forward_pre_hook(
        lambda _, __, given: passes.append(len(given["input_ids"])), with_kwargs=True
    )
    draw(model, PROMPTS, KEYS, rows=4, on_rows=lambda prompts: said.append(list(prompts)))
    hook.remove()
    assert [len(prompts) for prompts in said] == passes
    # The prefill comes longest first; then no prompt has more rows than samples.
    assert said[0] == [6, 5, 4, 3, 2, 1, 0]
    assert all(prompts.count(prompt) <= 3 for prompts in said[1:] for prompt in prompts)


def test_bfloat16_models_take_row_weights_too() -> None:
    model = llama()
    experts = three(model)[:2]
    ids = tokens(4)
    wanted = torch.cat([logits(merged(model, delta(experts, p)), ids[r : r + 1]) for r, p in enumerate(POINTS)])
    model.to(torch.bfloat16)
    with install(model, experts) as weights:
        weights.set(torch.tensor(POINTS))
        found = logits(model, ids)
    assert found.dtype == torch.bfloat16
    assert (found.float() - wanted).norm() < 0.05 * wanted.norm()


# Refusals


def test_a_pass_without_its_row_weights_is_refused() -> None:
    model = llama()
    with install(model, three(model)) as weights:
        with pytest.raises(ValueError, match="no row weights are set"):
            logits(model, tokens(2))
        with pytest.raises(ValueError, match=r"row weights are \[2, 2\]; they must be \[rows, 3 experts\]"):
            weights.set(torch.zeros(2, 2))
        for rows in (1, 3):
            weights.set(torch.zeros(rows, 3))
            with pytest.raises(ValueError, match=rf"set for {rows} rows; a layer was given \[2, 9, 32\]"):
                logits(model, tokens(2))


@pytest.mark.parametrize(
    ("name", "shape", "message"),
    [
        ("model.layers.9.mlp.up_proj", (48, 32), "adapts model.layers.9.mlp.up_proj, which is no module in this model"),
        ("model.embed_tokens", (61, 32), "which is `Embedding` in this model"),
        ("model.layers.0.mlp.up_proj", (48, 31), r"is \[48, 31\]; the layer is \[48, 32\]"),
    ],
)
def test_an_update_that_does_not_fit_is_refused_and_nothing_changed(name: str, shape: Any, message: str) -> None:
    model = llama()
    out, into = shape
    wrong = {name: [Factor(torch.zeros(1, into), torch.zeros(out, 1), 1.0)]}
    with pytest.raises(ValueError, match=message):
        install(model, [expert(model, 1), wrong])
    with install(model, [expert(model, 1)]), pytest.raises(ValueError, match="another forward pass already"):
        install(model, [expert(model, 2)])
    logits(model, tokens(2))
