"""What training added to a model, put to use: beside its weights, or in them.

Most of what an adapter learns is smaller than half a step of bf16 weights: folded into those, two thirds of it are lost.
So beside bf16 weights (and weights in four bits) it stays what it was in training, a low-rank path of its own. Weights in
fp32 take it in, and then nothing pays for it.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from transformers.pytorch_utils import Conv1D

from registry.methods.soup import Update, joined


@torch.no_grad()
def lay(model: Any, update: Update) -> None:
    """Adds the update to what the model's layers give, for good; `update` names them by their paths."""
    like = model.get_input_embeddings().weight
    for name, parts in update.items():
        whole = joined(parts)
        model.get_submodule(name).register_forward_hook(_adding(whole.A.to(like), whole.B.to(like)))


def _adding(A: Tensor, B: Tensor) -> Callable[[Any, tuple[Tensor, ...], Tensor], Tensor]:
    return lambda layer, inputs, output: output + F.linear(F.linear(inputs[0], A), B)


@torch.no_grad()
def fold(model: Any, update: Update) -> None:
    """Adds the update to the model's weights."""
    for name, parts in update.items():
        layer = model.get_submodule(name)
        whole = joined(parts)
        change = (whole.B @ whole.A).to(layer.weight)
        layer.weight += change.T if isinstance(layer, Conv1D) else change
