"""A grid of soups in one batch: every row of a batch its own weighting of the experts, at the price of one adapter.

The low-rank factors of all experts lie side by side, and between A and B the ranks of an expert are scaled by the
row's weight for it: row r runs on W + sum_i weight[r, i] DeltaW_i, which is `soup.delta` without merging. To sample
the grid, repeat each prompt once a weighting, under one key, and say which prompt sits in which row:

    with install(model, experts) as weights:
        sample(model, prompts, keys=keys, ..., on_rows=lambda prompts: weights.set(table[prompts]))

Small matrix products cost mostly their call, so there is one more a module, not two: B lies beside W in one matrix
[W, B], which takes the input with the scaled ranks behind it, [x, (A x) * weights].
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, TypeAlias

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from transformers.pytorch_utils import Conv1D

from registry.methods.soup import Update, joined

# Ranks are filled up to a multiple of this: matrix kernels want rows of whole 16 bytes.
GRAIN = 8
Layer: TypeAlias = nn.Linear | Conv1D


class RowWeights:
    """The experts laid on a model, and each row's weights of them. Leaving its `with` takes them off."""

    def __init__(self, experts: int) -> None:
        self.experts = experts
        self._owners: list[Tensor] = []
        """Per layout, the expert that each rank belongs to; modules with equal ranks share one."""
        self._dtypes: list[torch.dtype] = []
        self._scales: list[Tensor] = []
        """Per layout [rows, 1, ranks]: the weights for the coming pass."""
        self._adapted: list[Layer] = []

    def set(self, weights: Tensor) -> None:
        """The weights of the coming forward passes, [rows, experts], in the order of the batch's rows. They are taken
        as they are, in the model's dtype: `soup.check_weights` says whether they average."""
        if weights.dim() != 2 or weights.shape[1] != self.experts:
            raise ValueError(f"row weights are {list(weights.shape)}; they must be [rows, {self.experts} experts]")
        self._scales = [
            weights.to(owner.device, dtype)[:, None, owner]
            for owner, dtype in zip(self._owners, self._dtypes, strict=True)
        ]

    def remove(self) -> None:
        """The model as it was, to the bit."""
        while self._adapted:
            linear = self._adapted.pop()
            linear.__dict__.pop("forward")
            linear.weight.data = linear.weight.data.contiguous()
        self._scales = []

    def __enter__(self) -> RowWeights:
        return self

    def __exit__(self, *_: object) -> None:
        self.remove()


@torch.no_grad()
def install(model: nn.Module, experts: Sequence[Update]) -> RowWeights:
    """Lays the experts' updates, by module path inside `model`, on its linear layers; `set` must come before a pass.

    While they lie there a layer's weight is a part of [W, B], so nothing is held twice. For inference only.

    Raises:
        ValueError: an update is of something that is no plain linear layer of that shape. Nothing is changed then.
    """
    found = dict(model.named_modules())
    modules = list(dict.fromkeys(name for update in experts for name in update))
    layers = {name: _layer(name, found.get(name), experts) for name in modules}
    handle = RowWeights(len(experts))
    layouts: dict[Any, int] = {}
    for name, linear in layers.items():
        parts = [(number, part) for number, update in enumerate(experts) for part in update.get(name, ())]
        owners = [number for number, part in parts for _ in range(len(part.A))]
        spare = -len(owners) % GRAIN
        owners += [0] * spare
        weight = _outputs_first(linear)
        whole = joined([part for _, part in parts])
        A, B = F.pad(whole.A, (0, 0, 0, spare)).to(weight), F.pad(whole.B, (0, spare)).to(weight)
        layout = layouts.setdefault((*owners, weight.device, weight.dtype), len(layouts))
        if layout == len(handle._owners):
            handle._owners.append(torch.tensor(owners, device=weight.device))
            handle._dtypes.append(weight.dtype)
        both = torch.cat([weight, B], dim=1)
        own = both[:, : weight.shape[1]]
        linear.weight.data = own.T if isinstance(linear, Conv1D) else own
        linear.forward = _forward(handle, layout, A, both, linear.bias)  # type: ignore[method-assign]  # for as long as the rows are drawn
        handle._adapted.append(linear)
    return handle


def _forward(
    handle: RowWeights, layout: int, A: Tensor, both: Tensor, bias: Tensor | None
) -> Callable[[Tensor], Tensor]:
    def forward(x: Tensor) -> Tensor:
        if not handle._scales:
            raise ValueError("no row weights are set for this forward pass")
        scale = handle._scales[layout]
        if x.dim() != 3 or len(x) != len(scale):
            raise ValueError(f"row weights are set for {len(scale)} rows; a layer was given {list(x.shape)}")
        return F.linear(torch.cat([x, F.linear(x, A).mul_(scale)], dim=-1), both, bias)

    return forward


def _outputs_first(layer: Layer) -> Tensor:
    """The weight [outputs, inputs]; GPT-2 holds it the other way round."""
    return layer.weight.T if isinstance(layer, Conv1D) else layer.weight


def _layer(name: str, module: nn.Module | None, experts: Sequence[Update]) -> Layer:
    """The module that an update is of, if it can be laid there."""
    # A subclass (quantised, wrapped) computes something else than x W'.
    if type(module) is not nn.Linear and type(module) is not Conv1D:
        kind = "no module" if module is None else f"`{type(module).__name__}`"
        raise ValueError(f"an expert adapts {name}, which is {kind} in this model; it must be a plain linear layer")
    if "forward" in vars(module):
        raise ValueError(f"{name} has been given another forward pass already (row weights, or offloading)")
    shapes = {(len(part.B), part.A.shape[1]) for update in experts for part in update.get(name, ())}
    own = tuple(_outputs_first(module).shape)
    for shape in shapes - {own}:
        raise ValueError(f"an update of {name} is {list(shape)}; the layer is {list(own)}")
    return module
