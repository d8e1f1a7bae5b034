"""Coherence is the cosine of two embeddings, whatever stands beside them in the batch."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import stages
import tiny
import torch
import transformers

from registry.reading import noting
from registry.rewards import scorer
from specs.problems import UserError

PROMPTS = [
    ({"role": "user", "content": text},) for text in ("Why is it so?", "Where to, then, on such a long day?", "Who?")
]
ANSWERS = ["Because.", "", "Nobody knows who it was, and nobody asked."]


def encoder(folder: Path, form: Any = transformers.BertModel) -> Any:
    torch.manual_seed(0)
    config = transformers.BertConfig(
        vocab_size=len(tiny.tokenizer()), hidden_size=16, num_hidden_layers=2, num_attention_heads=2,
        intermediate_size=24, max_position_embeddings=64, initializer_range=0.5,
    )  # fmt: skip
    model = form(config).eval()
    model.save_pretrained(folder)
    tiny.tokenizer().save_pretrained(folder)
    return model


def reward(folder: Path, extra: str = "") -> Any:
    tiny.write_lines(folder / "p.jsonl", [{"prompt": "x"}])
    text = f"rewards: {{near: {{kind: coherence, source: ./encoder{extra}}}}}\ndata: {{p: {{source: ./p.jsonl, format: prompt}}}}\n"
    tiny.language_model(folder / "model")
    text += (
        "models: {base: {source: ./model, precision: fp32}}\nstages: {rolls: {do: sample, from: base, prompts: p}}\n"
    )
    view = stages.study(folder, text)
    assert view.problems() == []
    return view.artifact("near")


@torch.inference_mode()
def by_definition(model: Any, prompt: str, answer: str, pooled: bool, longest: int = 64) -> float:
    vectors = []
    for text in (prompt, answer):
        ids = torch.tensor([tiny.tokenizer()(text)["input_ids"][:longest]])
        found = model(input_ids=ids)
        vectors.append(found.pooler_output[0] if pooled else found.last_hidden_state[0].mean(0))
    return float(torch.nn.functional.cosine_similarity(*vectors, dim=0))


@pytest.mark.parametrize("batch", [1, 64])
@pytest.mark.parametrize("pooled", [True, False])
def test_it_is_its_definition_text_by_text_with_a_pooler_and_without(tmp_path: Path, pooled: bool, batch: int) -> None:
    model = encoder(tmp_path / "encoder", transformers.BertModel if pooled else transformers.BertForMaskedLM)
    body = model if pooled else model.bert
    found = scorer(reward(tmp_path), batch=batch)(PROMPTS, ANSWERS)
    expected = [
        by_definition(body, p[0]["content"], a, pooled) if a else 0.0 for p, a in zip(PROMPTS, ANSWERS, strict=True)
    ]
    assert found == pytest.approx(expected, abs=1e-5)
    assert found[0] != found[2]


def test_an_answer_that_repeats_the_question_is_as_near_as_can_be(tmp_path: Path) -> None:
    encoder(tmp_path / "encoder")
    assert scorer(reward(tmp_path), batch=8)(PROMPTS[:1], ["Why is it so?"]) == pytest.approx([1.0])


def test_what_the_encoder_reads_for_an_answer_is_noted(tmp_path: Path) -> None:
    encoder(tmp_path / "encoder")
    with noting() as noted:
        scorer(reward(tmp_path), batch=8)(PROMPTS, ANSWERS)
    both = [(p[0]["content"], a) for p, a in zip(PROMPTS, ANSWERS, strict=True)]
    assert noted.of_each(len(both)) == [
        sum(len(tiny.tokenizer()(t)["input_ids"]) for t in texts if t) for texts in both
    ]


def test_a_long_text_loses_its_end(tmp_path: Path) -> None:
    model = encoder(tmp_path / "encoder")
    score = scorer(reward(tmp_path, ", max_length: 8"), batch=8)
    long = ANSWERS[2]
    assert score(PROMPTS[:1], [long]) == pytest.approx([by_definition(model, "Why is it so?", long, True, 8)], abs=1e-5)


def test_weights_that_are_missing_are_not_made_up(tmp_path: Path) -> None:
    model = encoder(tmp_path / "encoder")
    kept = {name: value for name, value in model.state_dict().items() if "layer.1" not in name}
    model.save_pretrained(tmp_path / "encoder", state_dict=kept)
    with pytest.raises(UserError, match="does not hold all weights of a BertModel"):
        scorer(reward(tmp_path), batch=8)
