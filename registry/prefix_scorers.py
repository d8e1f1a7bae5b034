"""A prefix scorer: the body of a language model with a head that says what an unfinished answer is worth.

A `vocabulary` head scores, from the prefix read so far, each token that may follow it: V(z) = s.h + W[z].h, where W starts
at zero, so that a token never met is worth what its prefix is. A `scalar` head scores what was read. Values are in units
of the reward: the head works on standardised rewards and knows their mean and standard deviation.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from registry.artifacts import Artifact
from registry.bases import Bases
from registry.language_models import LanguageModel, load_language_model

HEAD = "head.safetensors"
SETTINGS = "head.json"


class PrefixHead(nn.Module):
    """See the module. Computes in fp32 whatever surrounds it."""

    def __init__(self, width: int, vocabulary: int, mean: float, deviation: float):
        """`vocabulary` 0 makes a scalar head."""
        super().__init__()
        self.mean, self.deviation = mean, deviation
        self.shared = nn.Parameter(torch.zeros(width))
        self.each = nn.Parameter(torch.zeros(vocabulary, width)) if vocabulary else None

    def of_tokens(self, hidden: Tensor, tokens: Tensor) -> Tensor:
        """The value of going on with `tokens` [...] where the body read `hidden` [..., width]; of `hidden` itself for a
        scalar head."""
        with torch.autocast(hidden.device.type, enabled=False):
            direction = self.shared if self.each is None else self.shared + self.each[tokens]
            return self.mean + self.deviation * (hidden.float() * direction).sum(-1)

    def of_all(self, hidden: Tensor) -> Tensor:
        """The value of going on with each token of the vocabulary [..., vocabulary]."""
        assert self.each is not None, "a scalar head scores one prefix at a time"
        with torch.autocast(hidden.device.type, enabled=False):
            values = hidden.float() @ self.each.T + (hidden.float() @ self.shared)[..., None]
            return self.mean + self.deviation * values


def save_head(head: PrefixHead, folder: Path, state: Mapping[str, Tensor] | None = None) -> None:
    """Writes the head beside the body's weights; `state` in the place of its own parameters."""
    tensors = dict(head.named_parameters()) if state is None else state
    save_file({name: t.detach().contiguous().cpu() for name, t in tensors.items()}, folder / HEAD)
    settings = {"mean": head.mean, "deviation": head.deviation}
    (folder / SETTINGS).write_text(json.dumps(settings) + "\n", encoding="utf-8")


def load_prefix_scorer(artifact: Artifact, bases: Bases | None = None) -> tuple[LanguageModel, PrefixHead]:
    """The language model whose body reads the prefix, and the head."""
    assert artifact.folder is not None
    loaded = load_language_model(artifact, bases=bases)
    weights = load_file(artifact.folder / HEAD)
    settings = json.loads((artifact.folder / SETTINGS).read_bytes())
    vocabulary, width = weights["each"].shape if "each" in weights else (0, len(weights["shared"]))
    head = PrefixHead(width, vocabulary, settings["mean"], settings["deviation"])
    head.load_state_dict(weights)
    return loaded, head.to(loaded.model.device).eval()


def hidden_states(model: Any, **inputs: Any) -> Tensor:
    """The last hidden states [rows, L, width] of the body of a causal language model, adapters included."""
    causal = model.get_base_model() if hasattr(model, "get_base_model") else model
    states: Tensor = causal.base_model(**inputs, use_cache=False).last_hidden_state
    return states
