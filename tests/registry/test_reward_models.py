"""Classifiers as rewards: the head, where a score is read, what a batch may not change, and what a stage saved."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import pytest
import stages
import tiny
import torch
import transformers
from safetensors.torch import load_file
from tokenizers.processors import TemplateProcessing

from registry.artifacts import Artifact
from registry.language_models import load_language_model
from registry.reward_models import (
    ScoreHead,
    dialogue_ids,
    load_reward_model,
    logits,
    unused_id,
    with_score_head,
)
from registry.rewards import scorer
from specs.problems import UserError
from specs.rewards import Classifier

PROMPT = ({"role": "user", "content": "How was it?"},)
PAD, END = 0, 1
ROWS = [[7], [7, PAD, 9, END], [8, END, END, 3, 12, PAD], [PAD], [30, 31, 32, 33, 34, 35, 36, END], [260, 5]]
SIZES: dict[str, Any] = {"vocab_size": 261, "initializer_range": 0.2}
LLAMA = SIZES | {
    "hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2, "num_attention_heads": 4,
    "num_key_value_heads": 4,
}  # fmt: skip


def llama() -> Any:
    return transformers.LlamaForCausalLM(transformers.LlamaConfig(**LLAMA))


def qwen2() -> Any:
    return transformers.Qwen2ForCausalLM(transformers.Qwen2Config(**LLAMA))


def gpt2() -> Any:
    return transformers.GPT2LMHeadModel(transformers.GPT2Config(**SIZES, n_embd=32, n_layer=2, n_head=4))


def gpt_neox() -> Any:
    return transformers.GPTNeoXForCausalLM(transformers.GPTNeoXConfig(**LLAMA))


def made(build: Any = llama, seed: int = 5) -> tuple[Any, Any]:
    torch.manual_seed(0)
    causal = build().eval()
    return causal, with_score_head(causal, seed).eval()


def by_hand(causal: Any, head: torch.Tensor, row: list[int]) -> float:
    with torch.inference_mode():
        hidden = causal.base_model(torch.tensor([row])).last_hidden_state
        return float(hidden[0, -1].float() @ head[0].float())


@pytest.mark.parametrize("build", [llama, qwen2, gpt2, gpt_neox])
def test_a_score_is_the_head_on_the_last_real_token(build: Any) -> None:
    causal, model = made(build)
    expected = [by_hand(causal, model.score.weight, row) for row in ROWS]
    assert max(expected) - min(expected) > 0.1
    for batch in (1, 2, 6):
        assert logits(model, ROWS, batch=batch)[:, 0].tolist() == pytest.approx(expected, abs=2e-6)


def test_a_score_is_not_moved_by_its_neighbours() -> None:
    _, model = made()
    alone = logits(model, ROWS, batch=1)
    for i, row in enumerate(ROWS):
        long = [40 + i] * 50
        beside = logits(model, [long, row, [PAD] * 20], batch=3)
        torch.testing.assert_close(beside[1], alone[i], atol=2e-6, rtol=0)


@pytest.mark.parametrize("token", [PAD, END, 260, None])
def test_the_models_own_padding_token_has_no_say(token: int | None) -> None:
    _, model = made()
    expected = logits(model, ROWS, batch=1)
    model.config.pad_token_id = token
    assert torch.equal(logits(model, ROWS, batch=1), expected)
    torch.testing.assert_close(logits(model, ROWS, batch=6), expected, atol=2e-6, rtol=0)


def test_scores_come_in_the_order_of_the_rows_and_progress_reaches_all() -> None:
    _, model = made()
    heard: list[tuple[int, int]] = []
    forward = logits(model, ROWS, batch=4, on_progress=lambda *counts: heard.append(counts))
    torch.testing.assert_close(logits(model, ROWS[::-1], batch=4).flip(0), forward, atol=2e-6, rtol=0)
    assert heard == [(4, 6), (6, 6)]


def test_the_padding_is_the_highest_token_that_no_row_holds() -> None:
    assert unused_id([[1, 2], [9]], 10) == 8
    assert unused_id([[8, 2], [9]], 10) == 7


def test_the_head_computes_in_fp32_under_autocast() -> None:
    torch.manual_seed(1)
    head = ScoreHead(64, 1, bias=False)
    hidden = torch.randn(5, 64, dtype=torch.bfloat16)
    with torch.autocast("cpu", torch.bfloat16):
        scores = head(hidden)
    assert scores.dtype == torch.float32
    assert torch.equal(scores, hidden.float() @ head.weight.T)
    assert head.to(torch.bfloat16)(hidden).dtype == torch.float32


def test_bf16_bodies_give_scores_that_bf16_could_not_tell_apart() -> None:
    _, model = made()
    model.model.to(torch.bfloat16)
    scores = logits(model, ROWS, batch=6)[:, 0]
    assert scores.dtype == torch.float32
    assert not torch.equal(scores, scores.bfloat16().float())


def test_the_head_starts_from_its_seed_with_variance_one_over_width_and_one() -> None:
    def start(seed: int, width: int = 32) -> torch.Tensor:
        config = tiny.config(hidden_size=width, num_attention_heads=4)
        return with_score_head(transformers.LlamaForCausalLM(config), seed).score.weight.detach()

    assert torch.equal(start(5), start(5))
    assert not torch.equal(start(5), start(6))
    several = torch.cat([start(seed, 256) for seed in range(8)])
    # 2048 draws: four standard errors of a mean and of a variance.
    assert abs(float(several.mean())) * 257**0.5 < 4 / 2048**0.5
    assert float(several.var()) * 257 == pytest.approx(1, abs=4 * (2 / 2048) ** 0.5)


def test_the_global_random_numbers_decide_nothing_of_the_head() -> None:
    heads = []
    for state in (0, 1):
        torch.manual_seed(0)
        causal = llama()
        torch.manual_seed(state)
        heads.append(with_score_head(causal, 5).score.weight)
    assert torch.equal(*heads)


def roberta() -> Any:
    """Its classification form has a head of another kind."""
    return transformers.RobertaForCausalLM(transformers.RobertaConfig(**LLAMA | {"is_decoder": True}))


def granite() -> Any:
    """It has no classification form at all."""
    return transformers.GraniteForCausalLM(transformers.GraniteConfig(**LLAMA))


@pytest.mark.parametrize("build", [roberta, granite])
def test_a_model_that_cannot_carry_a_score_head_is_refused(build: Any) -> None:
    causal = build()
    with pytest.raises(UserError, match="no sequence-classification form with a `score` head; choose another") as error:
        with_score_head(causal, 0)
    assert type(causal).__name__ in str(error.value)


def classifier(folder: Path, **fields: Any) -> Artifact:
    entry = Classifier(kind="classifier", source=str(folder), precision="fp32", **fields)
    payload = {"spec": entry.model_dump(mode="json"), "facts": {"precision": "fp32"}}
    return Artifact("judge", entry, payload, fingerprint="judge")


@pytest.fixture(scope="module")
def feelings(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A classifier with three named classes."""
    folder = tiny.classifier(tmp_path_factory.mktemp("feelings"), labels=3)
    model = transformers.AutoModelForSequenceClassification.from_pretrained(folder)
    model.config.id2label = {0: "joy", 1: "fear", 2: "calm"}
    model.config.label2id = {"joy": 0, "fear": 1, "calm": 2}
    model.save_pretrained(folder)
    return folder


def test_a_classs_reward_is_its_log_probability(feelings: Path) -> None:
    model = transformers.AutoModelForSequenceClassification.from_pretrained(feelings).eval()
    ids = torch.tensor([dialogue_ids(tiny.tokenizer(), PROMPT, "Good.", 1024)])
    with torch.inference_mode():
        hidden = model.model(ids).last_hidden_state[0, -1]
        outputs = [float(hidden @ model.score.weight[i]) for i in range(3)]
    whole = math.log(sum(map(math.exp, outputs)))
    for i, label in enumerate(("joy", "fear", "calm")):
        (found,) = scorer(classifier(feelings, label=label), batch=2)([PROMPT], ["Good."])
        assert found == pytest.approx(outputs[i] - whole, abs=1e-5)


def test_several_classes_need_a_label_and_a_wrong_one_is_named(feelings: Path) -> None:
    with pytest.raises(UserError, match=r"rewards\.judge: .* 3 classes; add `label:` with one of joy, fear, calm"):
        scorer(classifier(feelings), batch=2)
    with pytest.raises(
        UserError, match=r"judge: `label: anger` is not a class of the model; there are joy, fear, calm"
    ):
        scorer(classifier(feelings, label="anger"), batch=2)


def test_a_single_output_is_the_reward_as_it_is(tmp_path: Path) -> None:
    folder = tiny.classifier(tmp_path / "c")
    model = transformers.AutoModelForSequenceClassification.from_pretrained(folder).eval()
    expected = logits(model, [dialogue_ids(tiny.tokenizer(), PROMPT, "Good.", 1024)], batch=1)
    assert scorer(classifier(folder), batch=2)([PROMPT], ["Good."]) == [float(expected[0, 0])]


def test_a_long_dialogue_loses_its_beginning(tmp_path: Path) -> None:
    tokenizer = tiny.tokenizer()
    whole = dialogue_ids(tokenizer, PROMPT, "It was good.", 1024)
    assert dialogue_ids(tokenizer, PROMPT, "It was good.", 8) == whole[-8:]
    assert tokenizer.decode(whole[-8:]) == "s good.<|end|>"
    folder = tiny.classifier(tmp_path / "c")
    score = scorer(classifier(folder, max_length=8), batch=4)
    # The ends of both answers are alike, and more is not read.
    one, other = score([PROMPT, PROMPT], ["It was good.", "Nothing was good."])
    assert one == other
    full = scorer(classifier(folder), batch=4)
    assert len(set(full([PROMPT, PROMPT], ["It was good.", "Nothing was good."]))) == 2


def test_what_begins_every_text_stays_when_a_dialogue_is_cut() -> None:
    tokenizer = tiny.tokenizer()
    begins = [("<|system|>", tokenizer.convert_tokens_to_ids("<|system|>"))]
    ends = [("<|end|>", tokenizer.convert_tokens_to_ids("<|end|>"))]
    around = TemplateProcessing(single="<|system|> $A <|end|>", special_tokens=[*begins, *ends])
    tokenizer.backend_tokenizer.post_processor = around
    tokenizer.bos_token = "<|system|>"
    ids = dialogue_ids(tokenizer, PROMPT, "It was good.", 8)
    assert tokenizer.decode(ids) == "<|system|> good.<|end|>"
    tokenizer.chat_template = None
    assert tokenizer.decode(dialogue_ids(tokenizer, PROMPT, "It was good.", 8)) == "<|system|> good.<|end|>"


def test_a_classifier_without_a_chat_template_reads_prompt_and_answer_on_two_lines() -> None:
    tokenizer = tiny.tokenizer(chat_template=None)
    assert tokenizer.decode(dialogue_ids(tokenizer, PROMPT, "Good.", 1024)) == "How was it?\nGood."


STAGES = """\
models: {base: {source: ./model, precision: fp32}}
data: {pairs: {source: ./pairs.jsonl, format: preference}}
stages:
  one: {do: reward_model, from: base, data: pairs, test: pairs, learning_rate: 1e-2, lora: {rank: 4, alpha: 8}}
  two: {do: reward_model, from: base, data: pairs, test: pairs, learning_rate: 1e-2, lora: {rank: 4, alpha: 8}, beta: 2.0}
  all: {do: reward_model, from: base, data: pairs, test: pairs, learning_rate: 1e-3, lora: null, beta: 2.0}
"""
PAIRS = [
    {"prompt": "How was it?", "chosen": "It was good.", "rejected": "Bad"},
    {"prompt": "And you?", "chosen": "<pad>", "rejected": "A much longer answer<|end|>"},
    {"prompt": "Then?", "chosen": "Rain, then sun.", "rejected": "Rain"},
]


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> dict[str, stages.Built]:
    folder = tmp_path_factory.mktemp("trained")
    tiny.language_model(folder / "model")
    tiny.write_lines(folder / "pairs.jsonl", PAIRS)
    view = stages.study(folder, STAGES)
    return {name: stages.build(view, name) for name in ("one", "two", "all")}


def rewards(built: stages.Built, batch: int = 2) -> list[float]:
    prompts = [({"role": "user", "content": pair["prompt"]},) for pair in PAIRS for _ in range(2)]
    answers = [pair[side] for pair in PAIRS for side in ("chosen", "rejected")]
    return scorer(built.artifact, batch=batch)(prompts, answers)


@pytest.mark.parametrize(("name", "beta"), [("one", 1.0), ("two", 2.0), ("all", 2.0)])
def test_a_loaded_reward_model_gives_the_scores_the_trainer_had(
    trained: dict[str, stages.Built], name: str, beta: float
) -> None:
    found = rewards(trained[name])
    margins = [chosen - rejected for chosen, rejected in zip(found[::2], found[1::2], strict=True)]
    assert trained[name].metrics["test/mean_margin"] == pytest.approx(sum(margins) / 3, abs=1e-5)
    # P(chosen preferred) = sigmoid(beta times the margin).
    losses = [math.log1p(math.exp(-beta * margin)) for margin in margins]
    assert trained[name].metrics["test/loss"] == pytest.approx(sum(losses) / 3, abs=1e-5)
    assert rewards(trained[name], batch=1) == pytest.approx(found, abs=1e-5)


def test_the_head_is_served_as_it_was_trained_also_beside_bf16_weights(tmp_path: Path) -> None:
    tiny.language_model(tmp_path / "model")
    tiny.write_lines(tmp_path / "pairs.jsonl", PAIRS)
    built = stages.build(stages.study(tmp_path, STAGES.replace("fp32", "bf16")), "all")
    model, *_ = load_reward_model(built.artifact)
    (saved,) = (built.folder / "model").glob("*.safetensors")
    assert model.score.weight.dtype == torch.float32
    assert torch.equal(model.score.weight.cpu(), load_file(saved)["score.weight"])
    assert model.model.norm.weight.dtype == torch.bfloat16


def test_beta_changes_the_unit_of_the_reward_and_nothing_else(trained: dict[str, stages.Built]) -> None:
    assert [2 * r for r in rewards(trained["two"])] == pytest.approx(rewards(trained["one"]), abs=1e-6)
    assert trained["two"].metrics["test/loss"] == pytest.approx(trained["one"].metrics["test/loss"], abs=1e-6)


def test_the_trained_head_is_served_and_not_the_one_it_started_from(trained: dict[str, stages.Built]) -> None:
    model, *_ = load_reward_model(trained["one"].artifact)
    base = load_language_model(trained["one"].artifact.one("from")).model
    head = model.cpu().score.weight
    assert not torch.allclose(head, with_score_head(base, 3).score.weight)
    assert not torch.allclose(head, with_score_head(base, 0).score.weight)
