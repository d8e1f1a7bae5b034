"""Models as functions of what they read: rewards, values and hidden states at every position (`tasks.reader.Output`)."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from registry.prefix_scorers import PrefixHead
from tasks.attention import grouped_heads
from tasks.reader import Output


def reads_as_it_grows(classifier: Any) -> bool:
    """Whether it is a head on a causal body, which can be read at every position."""
    return isinstance(getattr(_unwrapped(classifier), "score", None), nn.Module)


def prefix_rewards(classifier: Any, label: int = -1) -> Output:
    """A sequence classifier on a causal language model's body, read at every position: the rewards [rows, L] of what was
    read so far, or the log-probability of the class `label`. It was trained on finished dialogues alone, so of an
    unfinished one it is an extrapolation."""
    body, head = _body(classifier), _unwrapped(classifier).score
    # Adapters beside bf16 weights are fp32.
    bf16 = next(classifier.parameters()).dtype == torch.bfloat16

    def output(keep: Tensor | None = None, **inputs: Any) -> Tensor:
        with grouped_heads(classifier), torch.autocast(inputs["input_ids"].device.type, torch.bfloat16, enabled=bf16):
            found: Tensor = head(_kept(body(**inputs).last_hidden_state, keep)).float()
        return found[..., 0] if label < 0 else found.log_softmax(-1)[..., label]

    return output


def prefix_values(model: Any, head: PrefixHead) -> Output:
    """A prefix scorer: the values [rows, L, vocabulary] of every next token; of a scalar head the values [rows, L] of
    what was read so far."""
    hidden = body_states(model)

    def output(keep: Tensor | None = None, **inputs: Any) -> Tensor:
        states = hidden(keep, **inputs)
        return head.of_tokens(states, inputs["input_ids"]) if head.each is None else head.of_all(states)

    return output


def exchanging(output: Output, ours: int, its: int) -> Output:
    """An output [rows, L, vocabulary] of a guide whose template ends answers by the token `its` where the policy's has `ours`:
    each has what the other is given, so that what the guide makes of ending is that of the policy's end."""

    def exchanged(keep: Tensor | None = None, **inputs: Any) -> Tensor:
        found = output(keep, **inputs)
        order = torch.arange(found.shape[-1], device=found.device)
        order[ours], order[its] = its, ours
        return found[..., order]

    return exchanged


def body_states(model: Any) -> Output:
    """The last hidden states [rows, L, width] of a causal language model's body."""
    body = _body(model)

    def output(keep: Tensor | None = None, **inputs: Any) -> Tensor:
        with grouped_heads(model):
            return _kept(body(**inputs).last_hidden_state, keep)

    return output


def _kept(hidden: Tensor, keep: Tensor | None) -> Tensor:
    return hidden if keep is None else hidden[:, keep]


def _unwrapped(model: Any) -> Any:
    return model.get_base_model() if hasattr(model, "get_base_model") else model


def _body(model: Any) -> Any:
    """The decoder below the head."""
    whole = _unwrapped(model)
    return getattr(whole, whole.base_model_prefix)
