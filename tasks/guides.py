"""Models as what a guide gives at every position: the reward of a prefix, the value of going on, the next token's logits."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from registry.prefix_scorers import PrefixHead
from tasks.reader import Output


def prefix_rewards(classifier: Any) -> Output:
    """A sequence classifier on a causal language model's body, read at every position: the rewards [rows, L] of what was
    read so far. It was trained on finished dialogues alone, so of an unfinished one it is an extrapolation."""
    body, head = _body(classifier), _unwrapped(classifier).score
    # Adapters beside bf16 weights are fp32.
    bf16 = next(classifier.parameters()).dtype == torch.bfloat16

    def output(keep: Tensor | None = None, **inputs: Any) -> Tensor:
        with torch.autocast(inputs["input_ids"].device.type, torch.bfloat16, enabled=bf16):
            found: Tensor = head(_kept(body(**inputs).last_hidden_state, keep))[..., 0]
        return found

    return output


def prefix_values(model: Any, head: PrefixHead) -> Output:
    """A prefix scorer: the values [rows, L, vocabulary] of every next token; of a scalar head the values [rows, L] of
    what was read so far."""
    body = _body(model)

    def output(keep: Tensor | None = None, **inputs: Any) -> Tensor:
        hidden = _kept(body(**inputs).last_hidden_state, keep)
        return head.of_tokens(hidden, inputs["input_ids"]) if head.each is None else head.of_all(hidden)

    return output


def _kept(hidden: Tensor, keep: Tensor | None) -> Tensor:
    return hidden if keep is None else hidden[:, keep]


def _unwrapped(model: Any) -> Any:
    return model.get_base_model() if hasattr(model, "get_base_model") else model


def _body(model: Any) -> Any:
    """The decoder below the head."""
    whole = _unwrapped(model)
    return getattr(whole, whole.base_model_prefix)
