"""Sequence classifiers as rewards: one score for a prompt and an answer.

Text is always decoded and tokenised again with the classifier's own tokenizer and template. The head computes in
fp32, because bf16 scores tie. Batches are padded with a token id that none of their rows holds, so the last real
token is found whatever the tokenizer's padding token is.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import nn
from transformers import AutoModelForSequenceClassification, AutoTokenizer

from registry.artifacts import ADAPTER, WEIGHTS, Artifact
from registry.bases import Bases
from registry.batches import batches
from registry.dialogue_text import Message, cut_left, encode_dialogue, shown
from registry.four_bits import is_rounded
from registry.language_models import (
    DTYPES,
    context_length,
    device,
    load_language_model,
    load_tokenizer,
    own_precision,
    pretrained,
    pretrained_model,
)
from registry.models import label_problem, located
from registry.reading import note
from registry.rewards import Score
from specs.problems import UserError
from specs.rewards import Classifier


class ScoreHead(nn.Linear):
    """A bias-free linear head that computes in fp32 whatever surrounds it."""

    def forward(self, hidden: torch.Tensor) -> torch.Tensor:
        with torch.autocast(hidden.device.type, enabled=False):
            return nn.functional.linear(hidden.float(), self.weight.float())


def with_score_head(causal: Any, seed: int) -> Any:
    """A sequence classifier with one output on the body of a causal language model. The head starts as
    N(0, 1/(d+1)) from `seed`, which keeps first rewards near zero."""
    config = causal.config.__class__.from_dict(causal.config.to_dict())
    config.num_labels = 1
    try:
        with torch.device("meta"):
            classifier = AutoModelForSequenceClassification.from_config(config)
    except ValueError:  # not among the architectures that have one
        classifier = None
    if not isinstance(getattr(classifier, "score", None), nn.Linear):
        raise UserError(
            f"{type(causal).__name__} has no sequence-classification form with a `score` head; choose another model"
        )
    prefix = classifier.base_model_prefix
    setattr(classifier, prefix, getattr(causal, causal.base_model_prefix))
    width = classifier.score.in_features
    head = ScoreHead(width, 1, bias=False)
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        head.weight.normal_(0.0, (width + 1) ** -0.5, generator=generator)
    classifier.score = head
    return classifier


def load_reward_model(
    artifact: Artifact, *, precision: str | None = None, bases: Bases | None = None
) -> tuple[Any, Any, int]:
    """A trained reward model, its tokenizer, and -1: its only output is the reward. It is in its own precision (or in
    `precision`). In fp32 its adapter is in the weights unless those are shared by way of `bases`, else beside them."""
    assert artifact.folder is not None
    resolved = precision or own_precision(artifact)
    if (artifact.folder / WEIGHTS).is_dir():
        load = AutoModelForSequenceClassification.from_pretrained
        model = pretrained_model(artifact.name, load, str(artifact.folder / WEIGHTS), dtype=torch.float32)
        head = ScoreHead(model.score.in_features, 1, bias=False)
        head.weight.data = model.score.weight.data
        model = model.to(DTYPES[resolved])
        model.score = head
    else:
        from peft import PeftModel

        four_bits: Any = "rounded" if is_rounded(artifact) else None
        below = load_language_model(artifact.start, precision=resolved, four_bits=four_bits, bases=bases).model
        model = PeftModel.from_pretrained(with_score_head(below, 0), str(artifact.folder / ADAPTER))
        if resolved == "fp32" and bases is None:
            model = model.merge_and_unload()
    return model.to(device()).eval(), load_tokenizer(artifact), -1


def load_classifier(artifact: Artifact) -> tuple[Any, Any, int]:
    """An external classifier, its tokenizer, and the index of the output that is the reward (-1: the only one)."""
    entry = artifact.entry
    assert isinstance(entry, Classifier)
    folder, where = located(entry.source, entry.revision)
    dtype = DTYPES[str(artifact.payload["facts"]["precision"])]
    load = AutoModelForSequenceClassification.from_pretrained
    model = pretrained_model(artifact.name, load, folder, dtype=dtype, **where)
    tokenizer = pretrained(artifact.name, AutoTokenizer.from_pretrained, folder, **where)
    labels = {str(name): int(i) for i, name in model.config.id2label.items()}
    if problem := label_problem(entry.label, list(labels)):  # a hub model's classes are known only now
        raise UserError(f"rewards.{artifact.name}: {problem}")
    return model.to(device()).eval(), tokenizer, -1 if entry.label is None else labels[entry.label]


def load_sequence_classifier(artifact: Artifact, bases: Bases | None = None) -> tuple[Any, Any, int]:
    """What a reward is that is a model: an external classifier or a trained one; see `load_classifier`."""
    return (
        load_classifier(artifact)
        if isinstance(artifact.entry, Classifier)
        else load_reward_model(artifact, bases=bases)
    )


def reads(model: Any, tokenizer: Any, wanted: int) -> int:
    """The most tokens of a dialogue that a classifier is given: what is `wanted`, or all it has positions for. (Some
    position tables begin with rows that are not used, which only the tokenizer's limit tells.)"""
    return min(wanted, context_length(model), int(tokenizer.model_max_length))


def dialogue_ids(tokenizer: Any, prompt: Sequence[Message], answer: str, max_length: int) -> list[int]:
    """The tokens of a whole dialogue for a classifier, its beginning cut out where it is too long."""
    if tokenizer.chat_template is None:
        tokenizer.truncation_side = "left"
        return list(tokenizer(f"{shown(prompt)}\n{answer}", truncation=True, max_length=max_length)["input_ids"])
    before, after = cut_left(tokenizer, *encode_dialogue(tokenizer, prompt, answer), max_length)
    return before + after


@torch.inference_mode()
def logits(
    model: Any,
    rows: Sequence[Sequence[int]],
    *,
    batch: int,
    on_progress: Callable[[int, int], None] | None = None,
) -> torch.Tensor:
    """The classifier's outputs `[rows, labels]` in fp32, in the order of `rows`; `batch` rows at a time at most (see `batches`)."""
    bf16 = next(model.parameters()).dtype == torch.bfloat16  # adapters beside bf16 weights are fp32
    results: list[torch.Tensor | None] = [None] * len(rows)
    done = 0
    for chosen in batches([len(row) for row in rows], [1] * len(rows), batch, model):
        some = [rows[i] for i in chosen]
        pad = unused_id(some, model.config.get_text_config().vocab_size)
        width = len(some[0])
        ids = torch.tensor([[*r, *[pad] * (width - len(r))] for r in some], device=model.device)
        lengths = torch.tensor([len(r) for r in some], device=model.device)
        mask = torch.arange(width, device=model.device)[None, :] < lengths[:, None]
        model.config.get_text_config().pad_token_id = pad
        with torch.autocast(model.device.type, torch.bfloat16, enabled=bf16):
            outputs = model(input_ids=ids, attention_mask=mask.long()).logits.float()
        for i, output in zip(chosen, outputs.cpu(), strict=True):
            results[i] = output
        done += len(chosen)
        if on_progress:
            on_progress(done, len(rows))
    return torch.stack([r for r in results if r is not None])


def unused_id(rows: Sequence[Sequence[int]], vocabulary: int) -> int:
    """The highest token id that no row holds."""
    used = set().union(*rows)
    return next(i for i in range(vocabulary - 1, -1, -1) if i not in used)


def longest_dialogue(artifact: Artifact, model: Any, tokenizer: Any) -> int:
    """The most tokens that a reward reads of a dialogue; of a longer one it reads the end."""
    while "experts" in artifact.inputs:  # a soup reads what its experts read
        artifact = artifact.inputs["experts"][0]
    return reads(model, tokenizer, int(artifact.fields["max_length"]))


def classifier_scores(artifact: Artifact, batch: int, model: Any, tokenizer: Any, label: int) -> Score:
    """A sequence classifier as a function of prompts and answers: its only output, or the log-probability of a class."""
    longest = longest_dialogue(artifact, model, tokenizer)

    def score(prompts: Sequence[Sequence[Message]], answers: Sequence[str]) -> list[float]:
        rows = [dialogue_ids(tokenizer, p, a, longest) for p, a in zip(prompts, answers, strict=True)]
        note([len(row) for row in rows])
        outputs = logits(model, rows, batch=batch)
        return [float(x) for x in (outputs[:, 0] if label < 0 else outputs.log_softmax(-1)[:, label])]

    return score
