"""Soups: one model out of several experts, by averaging their weights.

An expert is what training added to one shared model. As adapters it is an *update*: by module name, low-rank factors
whose products add up, one a trained adapter (a chain of adapters trained one on another has several). Rewarded soups
(Rame et al., 2023, arXiv 2306.04488) interpolate linearly; WARP (arXiv 2406.16768) along the arc between two experts.

Average updates, not factors: the product of averages is not the average of products. For two experts it misses it by
-l (1 - l) (B1 - B2)(A1 - A2), which is as large as the soup itself where the experts started from different factors.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import NamedTuple

import torch
from torch import Tensor


class Factor(NamedTuple):
    """The update of one adapter at one module: scaling * B @ A, `[out, in]`."""

    A: Tensor
    """[rank, in]"""
    B: Tensor
    """[out, rank]"""
    scaling: float
    """alpha / rank for plain LoRA."""


Update = Mapping[str, Sequence[Factor]]
Soup = dict[str, list[Factor]]

STRAIGHT = 1e-6
"""Sine of the angle below which an arc is a line. Exactly opposite updates have no shortest arc either."""
_INSTEAD = "their factors have no average, use the exact average of updates (delta)"


def delta(experts: Sequence[Update], weights: Sequence[float]) -> Soup:
    """The exact average of updates, sum_i weight_i DeltaW_i: rewarded soups (arXiv 2306.04488, section 2) on what the
    adapters do rather than on how they are written.

    One factor a module, in fp32 at least, its rank the sum of the ranks, its scaling 1. An expert of weight 0 is left
    out, so that a corner is that expert to the bit; an expert that does not touch a module adds nothing there.

    Raises:
        ValueError: the weights are not those of an average, or the experts' shapes differ.
    """
    return _weighted(experts, dict.fromkeys(_modules(experts, weights), weights))


def factors(experts: Sequence[Update], weights: Sequence[float]) -> Soup:
    """A and B averaged apart, as the code published with rewarded soups does (alexrame/rewardedsoups).

    One factor a module, of the experts' own rank and scaling, in fp32 at least. Near `delta` only where the experts
    were trained on from one and the same adapter.

    Raises:
        ValueError: an expert is a chain, or modules, ranks, scalings or shapes differ; or as for `delta`.
    """
    soup: Soup = {}
    for module in _modules(experts, weights):
        for number, expert in enumerate(experts, 1):
            if module not in expert:
                raise ValueError(f"expert {number} does not touch {module}, another one does; {_INSTEAD}")
            if len(expert[module]) != 1:
                raise ValueError(f"expert {number} is a chain of {len(expert[module])} adapters; {_INSTEAD}")
        parts = [expert[module][0] for expert in experts]
        ranks, scalings = [len(part.A) for part in parts], [part.scaling for part in parts]
        if len(set(ranks)) > 1:
            raise ValueError(f"the experts' ranks differ at {module}: {_listed(ranks)}; {_INSTEAD}")
        if len(set(scalings)) > 1:
            raise ValueError(f"the experts' scalings differ at {module}: {_listed(scalings)}; {_INSTEAD}")
        soup[module] = [
            Factor(_sum([part.A for part in parts], weights), _sum([part.B for part in parts], weights), scalings[0])
        ]
    return soup


def slerp(experts: Sequence[Update], weights: Sequence[float]) -> Soup:
    """Spherical interpolation between the updates of two experts, module by module (WARP, arXiv 2406.16768, equation
    SLERP): sin(w1 Omega) / sin Omega * DeltaW1 + sin(w2 Omega) / sin Omega * DeltaW2, Omega the angle between them.

    It keeps the norm that averaging loses where experts disagree. Linear where the angle is 0 (or a straight one) or
    an update is 0. One factor a module, as for `delta`.

    Raises:
        ValueError: not two experts, or as for `delta`.
    """
    if len(experts) != 2:
        raise ValueError(f"slerp goes between two experts; {len(experts)} were given")
    modules = _modules(experts, weights)
    return _weighted(experts, {module: _arc(_at(experts, module), weights) for module in modules})


def average(states: Sequence[Mapping[str, Tensor]], weights: Sequence[float]) -> dict[str, Tensor]:
    """The average of full weights, tensor by tensor in fp32 at least, each in its own dtype again; new tensors.

    A corner is that model, and equal models are themselves, to the bit. What is no floating-point number (positions,
    masks) is copied: it has no average.

    Raises:
        ValueError: the states differ in keys, shapes, dtypes or integers; or the weights are not those of an average.
    """
    _check_count(states, weights)
    first = states[0]
    for number, state in enumerate(states[1:], 2):
        if odd := sorted(first.keys() ^ state.keys()):
            raise ValueError(f"models 1 and {number} do not hold the same tensors: {odd[0]} is in one of them only")
        for key, tensor in state.items():
            kinds = [f"{str(t.dtype).removeprefix('torch.')} {list(t.shape)}" for t in (first[key], tensor)]
            if kinds[0] != kinds[1]:
                raise ValueError(f"{key} is {kinds[0]} in model 1 and {kinds[1]} in model {number}")
            if not tensor.is_floating_point() and not torch.equal(first[key], tensor):
                raise ValueError(f"{key} holds integers that differ between models 1 and {number}: no average")
    return {
        key: _sum([state[key] for state in states], weights).to(tensor.dtype)
        if tensor.is_floating_point()
        else tensor.clone()
        for key, tensor in first.items()
    }


def check_weights(weights: Sequence[float]) -> None:
    """Refuses what does not average.

    Raises:
        ValueError: a weight is not finite or negative (extrapolation), or they do not sum to 1 within 1e-9.
    """
    if not all(map(math.isfinite, weights)):
        raise ValueError(f"the weights {_listed(weights)} are not all finite")
    if min(weights, default=0.0) < 0:
        raise ValueError(f"the weights {_listed(weights)} are not all 0 or more: extrapolation is not offered")
    if abs(math.fsum(weights) - 1) > 1e-9:
        raise ValueError(f"the weights {_listed(weights)} sum to {math.fsum(weights):.12g}; they must sum to 1")


def inner(first: Sequence[Factor], second: Sequence[Factor]) -> float:
    """The inner product of two updates at one module, sum of DeltaW1 * DeltaW2, in fp64 from products of the size of
    the ranks: <B1 A1, B2 A2> = sum of (B1' B2) * (A1 A2'). `inner(u, u)` is the square of the Frobenius norm."""
    return math.fsum(
        one.scaling
        * other.scaling
        * float(((one.B.double().T @ other.B.double()) * (one.A.double() @ other.A.double().T)).sum())
        for one in first
        for other in second
    )


def joined(parts: Sequence[Factor], coefficients: Sequence[float] | None = None) -> Factor:
    """One factor of scaling 1 whose product is sum_i coefficient_i scaling_i B_i A_i, or the plain sum; the ranks add up,
    in order."""
    coefficients = [1.0] * len(parts) if coefficients is None else coefficients
    return Factor(
        torch.cat([_fp32(part.A) for part in parts]),
        torch.cat([c * part.scaling * _fp32(part.B) for part, c in zip(parts, coefficients, strict=True)], dim=1),
        1.0,
    )


def _modules(experts: Sequence[Update], weights: Sequence[float]) -> list[str]:
    """The modules that any expert touches, once weights and shapes are found to agree."""
    _check_count(experts, weights)
    modules = list(dict.fromkeys(module for expert in experts for module in expert))
    for module in modules:
        shapes = {(len(part.B), part.A.shape[1]) for expert in experts for part in expert.get(module, ())}
        if len(shapes) > 1:
            raise ValueError(f"the experts' updates of {module} have shapes {_listed(sorted(shapes))}: not one model's")
    return modules


def _check_count(experts: Sequence[object], weights: Sequence[float]) -> None:
    if len(experts) != len(weights):
        raise ValueError(f"{len(experts)} experts came with {len(weights)} weights")
    check_weights(weights)


def _at(experts: Sequence[Update], module: str) -> list[Sequence[Factor]]:
    return [expert.get(module, ()) for expert in experts]


def _weighted(experts: Sequence[Update], coefficients: Mapping[str, Sequence[float]]) -> Soup:
    """By module, the sum of the experts' updates times their coefficients, without those that are 0."""
    soup: Soup = {}
    for module, each in coefficients.items():
        kept = [(part, c) for parts, c in zip(_at(experts, module), each, strict=True) for part in parts if c != 0]
        if kept:
            soup[module] = [joined(*zip(*kept, strict=True))]
    return soup


def _arc(updates: Sequence[Sequence[Factor]], weights: Sequence[float]) -> Sequence[float]:
    """The coefficients of two updates at a point of the arc between them."""
    first, second = updates
    norms = math.sqrt(inner(first, first) * inner(second, second))
    if norms == 0:
        return weights
    angle = math.acos(max(-1.0, min(1.0, inner(first, second) / norms)))
    if math.sin(angle) < STRAIGHT:
        return weights
    return [math.sin(w * angle) / math.sin(angle) for w in weights]


def _sum(tensors: Sequence[Tensor], weights: Sequence[float]) -> Tensor:
    """The weighted average in fp32 at least, one pass a tensor: each is mixed in by its share of the weight so far, so
    that corners and equal tensors come out to the bit. A new tensor."""
    kept = [(_fp32(tensor), w) for tensor, w in zip(tensors, weights, strict=True) if w != 0]
    total, mass = kept[0]
    if len(kept) == 1:
        return total.clone()
    for tensor, w in kept[1:]:
        mass += w
        total = torch.lerp(total, tensor, w / mass)
    return total


def _fp32(tensor: Tensor) -> Tensor:
    return tensor.to(torch.promote_types(tensor.dtype, torch.float32))


def _listed(values: Sequence[object]) -> str:
    return ", ".join(map(str, values))
