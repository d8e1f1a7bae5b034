"""Coherence: how near an answer is to what was asked, by the embeddings of a sentence encoder that the study names.

The cosine of both embeddings (ARGS, arXiv 2402.01694, with princeton-nlp/sup-simcse-bert-base-uncased). The embedding is
the encoder's pooled output, and of an encoder without a pooler the mean of its last states.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from transformers import AutoModel, AutoTokenizer

from registry.artifacts import Artifact
from registry.dialogue_text import Message, shown
from registry.language_models import context_length, device, pretrained
from registry.models import located
from registry.reading import note
from registry.rewards import Score
from specs.problems import UserError
from specs.rewards import Coherence


def coherence_scores(artifact: Artifact, batch: int) -> Score:
    """The cosine of a prompt's and an answer's embeddings as a function of both, in [-1, 1]; an empty answer, which says
    nothing of what was asked, has 0."""
    model, tokenizer, has_pooler = _load(artifact)
    longest = min(int(artifact.fields["max_length"]), context_length(model), int(tokenizer.model_max_length))

    @torch.inference_mode()
    def embedded(texts: Sequence[str]) -> tuple[dict[str, Tensor], dict[str, int]]:
        distinct = sorted(set(texts), key=len)
        found: dict[str, Tensor] = {}
        tokens: dict[str, int] = {}
        for start in range(0, len(distinct), batch):
            some = distinct[start : start + batch]
            rows = tokenizer(some, padding=True, truncation=True, max_length=longest, return_tensors="pt").to(
                model.device
            )
            outputs = model(**rows)
            mask = rows["attention_mask"][..., None]
            means = (outputs.last_hidden_state * mask).sum(1) / mask.sum(1).clamp(min=1)
            vectors = outputs.pooler_output if has_pooler else means
            tokens |= dict(zip(some, rows["attention_mask"].sum(1).tolist(), strict=True))
            found |= dict(zip(some, torch.nn.functional.normalize(vectors.float(), dim=-1).cpu(), strict=True))
        return found, tokens

    def score(prompts: Sequence[Sequence[Message]], answers: Sequence[str]) -> list[float]:
        asked = [shown(prompt) for prompt in prompts]
        of, tokens = embedded([text for text in (*asked, *answers) if text])
        pairs = list(zip(asked, answers, strict=True))
        note([tokens.get(q, 0) + tokens.get(a, 0) for q, a in pairs])
        return [float(of[q] @ of[a]) if q and a else 0.0 for q, a in pairs]

    return score


def _load(artifact: Artifact) -> tuple[Any, Any, bool]:
    """The encoder, its tokenizer, and whether its folder has the weights of a pooler."""
    entry = artifact.entry
    assert isinstance(entry, Coherence)
    folder, where = located(entry.source, entry.revision)
    strict = {"output_loading_info": True, "use_safetensors": True, "dtype": torch.float32}
    model, found = pretrained(artifact.name, AutoModel.from_pretrained, folder, **strict, **where)
    made_up = {key for key in found["missing_keys"] if not key.startswith("pooler.")}
    if made_up or found["mismatched_keys"]:
        raise UserError(f"rewards.{artifact.name}: {folder} does not hold all weights of a {type(model).__name__}")
    has_pooler = getattr(model, "pooler", None) is not None and not found["missing_keys"]
    tokenizer = pretrained(artifact.name, AutoTokenizer.from_pretrained, folder, **where)
    if tokenizer.pad_token is None:  # any will do: padding is masked
        tokenizer.pad_token = tokenizer.eos_token
    return model.to(device()).eval(), tokenizer, has_pooler
