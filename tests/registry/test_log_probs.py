"""Log-probabilities of answers that share a row: those of each answer alone, and what they cost."""

from __future__ import annotations

import random
from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import pytest
import tiny
import torch
import transformers
from peft import LoraConfig, get_peft_model
from torch import Tensor
from trl.trainer import utils as trl_head

from registry.log_probs import Row, answer_log_probs, score_rows, token_log_probs, with_log_probs
from registry.methods.footprint import COLUMNS
from registry.methods.shared_prompt import by_token, pack
from specs.problems import UserError

SIZES: dict[str, Any] = {"vocab_size": 261, "initializer_range": 0.2}
LLAMA = SIZES | {
    "hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2, "num_attention_heads": 4,
    "num_key_value_heads": 2,
}  # fmt: skip
WINDOW = {"head_dim": 8, "sliding_window": 6}


def llama(**changes: Any) -> Any:
    return transformers.LlamaForCausalLM(tiny.config(**changes))


def llama_eager() -> Any:
    return transformers.LlamaForCausalLM._from_config(tiny.config(), attn_implementation="eager")


def gpt2() -> Any:  # its positions are learnt
    settings = transformers.GPT2Config(
        **SIZES, n_embd=32, n_layer=2, n_head=4, n_positions=24, bos_token_id=1, eos_token_id=1
    )
    return transformers.GPT2LMHeadModel(settings)


def mistral() -> Any:  # every layer sees six tokens back
    return transformers.MistralForCausalLM(transformers.MistralConfig(**LLAMA, sliding_window=6))


def gemma2() -> Any:  # every other layer does, attention is eager, and logits are capped
    return transformers.Gemma2ForCausalLM(transformers.Gemma2Config(**LLAMA, **WINDOW))


def gemma3() -> Any:
    return transformers.Gemma3ForCausalLM(transformers.Gemma3TextConfig(**LLAMA, **WINDOW))


def ragged() -> list[Row]:
    """Prompts of 7, 1, 15 and 3 tokens with answers of 1 to 12, among them every special token."""
    numbers = random.Random(0)
    sizes = [(7, (3, 12, 1)), (1, (2, 5)), (15, (4, 4, 4, 9)), (3, (1,))]
    return [
        (
            [numbers.randrange(261) for _ in range(p)],
            [[*(numbers.randrange(261) for _ in range(t - 1)), 1] for t in sizes],
        )
        for p, sizes in sizes
    ]


ROWS = ragged()


def made(build: Callable[[], Any] = llama, seed: int = 0) -> Any:
    torch.set_num_threads(1)  # tiny models are slower on more
    torch.manual_seed(seed)
    return build().eval()


def alone(model: Any, prompt: Any, answer: Any) -> list[float]:
    """The log-probability of each token of an answer, from one plain pass over prompt and answer."""
    with torch.inference_mode():
        logs = model(torch.tensor([[*prompt, *answer]])).logits[0].double().log_softmax(-1)
    return [float(logs[len(prompt) + t - 1, token]) for t, token in enumerate(answer)]


def all_alone(model: Any) -> list[list[float]]:
    return [[sum(alone(model, prompt, answer)) for answer in answers] for prompt, answers in ROWS]


def close(found: list[list[float]], expected: list[list[float]]) -> None:
    assert [len(row) for row in found] == [len(row) for row in expected]
    for ours, theirs in zip(found, expected, strict=True):
        assert ours == pytest.approx(theirs, rel=1e-5, abs=1e-5)


def test_a_processor_projects_what_has_a_label_alone_and_few_columns_at_a_time(monkeypatch: pytest.MonkeyPatch) -> None:
    """Of two rows with 10 and 9 positions, the 5 and 2 tokens of their answers; TRL's own setting projects all 20."""
    given: list[tuple[int, int]] = []
    original = trl_head._ChunkedLogProbFunction.apply

    def apply(hidden: Tensor, *rest: Any) -> Any:
        given.append((len(hidden), rest[4]))
        return original(hidden, *rest)

    model = with_log_probs(made())
    monkeypatch.setattr(trl_head, "_ChunkedLogProbFunction", SimpleNamespace(apply=apply))
    found = token_log_probs(model, pack([([1] * 6, [[2, 3], [4, 5, 6]]), ([7] * 8, [[8, 9]])]))
    assert given == [(5 + 2, COLUMNS)]
    assert found.shape == (2, 10)
    assert (found != 0).sum(1).tolist() == [5, 2]


@pytest.mark.parametrize("build", [llama, llama_eager, gpt2, mistral, gemma2, gemma3])
def test_answers_side_by_side_are_as_probable_as_each_alone(build: Callable[[], Any]) -> None:
    model = made(build)
    expected = all_alone(model)  # sums of up to -80 nats
    for batch in (1, 6, 100):
        close(score_rows(model, ROWS, batch=batch), expected)


def test_the_attention_of_these_models_is_of_both_kinds() -> None:
    kinds = {build: made(build).config._attn_implementation for build in (llama, llama_eager, gemma2)}
    assert kinds == {llama: "sdpa", llama_eager: "eager", gemma2: "eager"}


def test_tokens_come_back_one_by_one() -> None:
    model = with_log_probs(made())
    packed = pack(ROWS)
    with torch.inference_mode():
        found = by_token(token_log_probs(model, packed), packed, 4)
    for r, (prompt, answers) in enumerate(ROWS):
        for a, answer in enumerate(answers):
            expected = [*alone(model, prompt, answer), *[0.0] * (12 - len(answer))]
            assert found[r, a].tolist() == pytest.approx(expected, rel=1e-5, abs=1e-5)
        assert not found[r, len(answers) :].any()


def test_reading_the_last_tokens_too_changes_no_answer() -> None:
    model = with_log_probs(made())
    packed = pack(ROWS, whole=True)
    with torch.inference_mode():
        found = answer_log_probs(model, packed, 4)
    close([row[: len(answers)] for row, (_, answers) in zip(found.tolist(), ROWS, strict=True)], all_alone(model))


@pytest.mark.parametrize("build", [llama, llama_eager])
def test_another_answer_beside_it_leaves_every_bit_of_an_answer(build: Callable[[], Any]) -> None:
    model = made(build)
    prompt, (first, second, third) = ROWS[0]
    changed = [(token + 1) % 261 for token in second]
    before, after = (score_rows(model, [(prompt, [first, middle, third])], batch=3)[0] for middle in (second, changed))
    assert (before[0], before[2]) == (after[0], after[2])
    assert abs(before[1] - after[1]) > 1
    # A longer one moves the third, whose sums are then added up in another order.
    longer = score_rows(model, [(prompt, [first, [*second, 5, 6, 7], third])], batch=3)[0]
    assert (longer[0], longer[2]) == pytest.approx((before[0], before[2]), abs=1e-5)


def test_what_stands_in_the_padding_is_of_no_account() -> None:
    model = with_log_probs(made())
    packed = pack(ROWS)
    ends = torch.tensor([len(prompt) - 1 + sum(map(len, answers)) for prompt, answers in ROWS])
    padding = torch.arange(packed.labels.shape[1]) >= ends[:, None]
    assert padding.sum() == (35 - 22) + (35 - 7) + 0 + (35 - 3)
    other = packed._replace(input_ids=packed.input_ids.masked_fill(padding, 77))
    with torch.inference_mode():
        assert torch.equal(answer_log_probs(model, packed, 4), answer_log_probs(model, other, 4))


def padded_sums(model: Any) -> Tensor:
    """Every answer behind a copy of its prompt, padded on the right to one width: the textbook's way."""
    sequences = [(p, a) for p, answers in ROWS for a in answers]
    width = max(len(p) + len(a) for p, a in sequences)
    ids = torch.tensor([[*p, *a, *[0] * (width - len(p) - len(a))] for p, a in sequences])
    mask = torch.tensor([[1] * (len(p) + len(a)) + [0] * (width - len(p) - len(a)) for p, a in sequences])
    logs = model(input_ids=ids, attention_mask=mask).logits.log_softmax(-1)
    return torch.stack(
        [logs[i, len(p) - 1 : len(p) + len(a) - 1].gather(1, ids[i, len(p) : len(p) + len(a), None]).sum()
         for i, (p, a) in enumerate(sequences)]
    )  # fmt: skip


@pytest.mark.parametrize("adapted", [False, True])
@pytest.mark.parametrize("build", [llama, llama_eager, gemma2])
def test_gradients_are_those_of_padded_copies(build: Callable[[], Any], adapted: bool) -> None:
    model = with_log_probs(made(build))
    if adapted:
        model = get_peft_model(model, LoraConfig(r=4, target_modules="all-linear", init_lora_weights=False))
    there = torch.tensor([[a < len(answers) for a in range(4)] for _, answers in ROWS])
    weights = torch.linspace(-1, 2, 10)  # an answer's weight in the loss, some pushed down
    gradients = []
    for sums in (answer_log_probs(model, pack(ROWS), 4)[there], padded_sums(model)):
        model.zero_grad()
        (sums * weights).sum().backward()
        trained = {name: p.grad.clone() for name, p in model.named_parameters() if p.requires_grad}
        gradients.append(trained)
    ours, theirs = gradients
    assert len(ours) == (28 if adapted else len(list(model.parameters())))
    for name, expected in theirs.items():
        assert expected.abs().max() > 0
        assert float((ours[name] - expected).abs().max()) <= 1e-5 * float(expected.abs().max()), name


def kept_shapes(run: Callable[[], Tensor]) -> list[tuple[int, ...]]:
    """The shapes of all tensors that a forward pass keeps for the backward one."""
    shapes: list[tuple[int, ...]] = []
    with torch.autograd.graph.saved_tensors_hooks(lambda t: shapes.append(tuple(t.shape)) or t, lambda t: t):
        run()
    return shapes


def test_no_tensor_of_positions_by_vocabulary_is_kept() -> None:
    model = with_log_probs(made())

    def of_vocabulary(run: Callable[[], Tensor]) -> set[tuple[int, ...]]:
        return {shape for shape in kept_shapes(run) if 261 in shape}

    # The head's weights, which are there anyway.
    assert of_vocabulary(lambda: answer_log_probs(model, pack(ROWS), 4)) == {(261, 32)}
    assert any(len(shape) == 3 for shape in of_vocabulary(lambda: padded_sums(model)))


def test_a_batch_has_no_more_answers_than_asked_for_unless_one_row_has_them() -> None:
    model = made()
    rows: list[Row] = [([5] * 40, [[6] * 4]), *(([5] * 3, [[6] * 4] * 4) for _ in range(5)), ([5], [[6]])]
    done: list[tuple[int, int]] = []
    score_rows(model, rows, batch=8, on_progress=lambda *counts: done.append(counts))
    # One answer and four, then twice four, then what is left: four and one.
    assert done == [(2, 7), (4, 7), (6, 7), (7, 7)]
    done.clear()
    score_rows(model, rows, batch=2, on_progress=lambda *counts: done.append(counts))
    assert [d for d, _ in done] == [1, 2, 3, 4, 5, 6, 7]


def test_scores_know_no_dropout_and_leave_a_model_in_training_where_it_was() -> None:
    causal = made()
    expected = all_alone(causal)
    adapters = LoraConfig(r=4, target_modules="all-linear", lora_dropout=0.5)
    model = get_peft_model(with_log_probs(causal), adapters).train()
    for name, parameter in model.named_parameters():
        if "lora_B" in name:
            torch.nn.init.normal_(parameter)
    causal.model.norm.eval()
    one, other = (score_rows(model, ROWS, batch=6) for _ in range(2))
    assert one == other
    assert abs(one[0][0] - expected[0][0]) > 0.1  # the adapters are in it
    assert model.training and causal.model.layers[0].training and not causal.model.norm.training


def test_weights_in_fp32_may_be_scored_in_bf16_as_they_are_trained() -> None:
    model = made()
    whole, half = score_rows(model, ROWS, batch=6), score_rows(model, ROWS, batch=6, precision="bf16")
    assert half != whole
    for ours, theirs in zip(half, whole, strict=True):
        assert ours == pytest.approx(theirs, abs=1.0)
    assert score_rows(model, ROWS, batch=6, precision="fp32") == whole
    model.bfloat16()
    assert score_rows(model, ROWS, batch=6) == score_rows(model, ROWS, batch=6, precision="bf16")


def lfm2() -> Any:
    layers = ["conv", "full_attention"]
    return transformers.Lfm2ForCausalLM(transformers.Lfm2Config(**LLAMA, layer_types=layers))


def qwen3_next() -> Any:
    settings = transformers.Qwen3NextConfig(
        **LLAMA, head_dim=8, layer_types=["linear_attention", "full_attention"], num_experts=0,
        linear_num_value_heads=4, linear_num_key_heads=2, linear_key_head_dim=8, linear_value_head_dim=8,
    )  # fmt: skip
    return transformers.Qwen3NextForCausalLM(settings)


def bloom() -> Any:
    return transformers.BloomForCausalLM(transformers.BloomConfig(**SIZES, hidden_size=32, n_layer=2, n_head=4))


@pytest.mark.parametrize(
    ("build", "why"),
    [(lfm2, "conv"), (qwen3_next, "linear_attention, a recurrent state"), (bloom, "positions that cannot be given")],
)
def test_a_model_whose_answers_would_feel_each_other_is_refused(build: Callable[[], Any], why: str) -> None:
    with pytest.raises(UserError, match=f"ForCausalLM has {why}; .* choose another model$"):
        score_rows(made(build), ROWS, batch=4)
