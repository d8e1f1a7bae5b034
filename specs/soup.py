"""Weight interpolation: rewarded soups (Ramé et al., arXiv 2306.04488), WARM (2401.12187), SLERP (WARP, 2406.16768).

`weights: {grid: 11}` makes one stage for each point of a lattice on the simplex, named by its weights: `soup[0.3,0.7]`.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING, Annotated, Any, ClassVar, Literal

from pydantic import BeforeValidator, Field, field_validator

from specs.base import NonNegative, Spec
from specs.problems import Path, listed
from specs.references import Experts
from specs.stage import Stage

if TYPE_CHECKING:
    from specs.graph import Graph


class Grid(Spec):
    """A lattice on the simplex of weights."""

    grid: Annotated[int, Field(strict=True, ge=2, le=101)]
    """The values that a weight takes: 11 is steps of a tenth, from one expert to the next."""


def _listed(value: Any) -> Any:
    return [value] if isinstance(value, str) else value


class Soup(Stage):
    """Experts that were trained from one model, averaged in weight space. Adapters are averaged as updates, exactly."""

    produces: ClassVar[str] = "soup"
    """What its experts are: language models or rewards (the graph knows)."""

    do: Literal["soup"]
    experts: Annotated[
        tuple[Experts, ...],
        Field(min_length=1),
        BeforeValidator(_listed, json_schema_input_type=tuple[Experts, ...] | Experts),
    ]
    """Models to average, or reward models; the name of a sweep means its members."""
    weights: tuple[NonNegative, ...] | Grid | None = None
    """Each expert's weight, in their order, summing to 1; or a grid over all such weights; equal ones if absent."""
    rule: Literal["delta", "factors", "weights", "slerp"] = "delta"
    """`delta` averages the updates, exactly; `factors` the factors of LoRA one by one, as the published code does, which
    is another model; `weights` whole weights, for experts without adapters; `slerp` goes along the arc between the updates
    of two experts, layer by layer."""

    @field_validator("weights")
    @classmethod
    def _sum_to_one(cls, weights: Any) -> Any:
        if isinstance(weights, tuple) and abs(sum(weights) - 1) > 1e-9:
            raise ValueError(f"weights sum to 1; these sum to {sum(weights):g}")
        return weights

    def problems(self, graph: Graph) -> Iterator[tuple[Path, str]]:
        experts = [member for name in self.experts for member in graph.members(name)]
        if not experts:
            return  # said already
        for member in experts:
            if graph.nodes[member].section == "rewards":
                yield ("experts",), f"`{member}` is not trained, so it has no weights to average"
                return
        if len({graph.nodes[member].produces for member in experts}) > 1:
            yield ("experts",), "language models and reward models do not mix"
        if len(set(experts)) < 2:
            yield ("experts",), "a soup has at least two experts"
        if isinstance(self.weights, Grid):
            yield ("weights",), "a grid is spread out by the loader, and this stage did not go through it"
        elif self.weights is not None and len(self.weights) != len(experts):
            yield ("weights",), f"{len(self.weights)} weights for {len(experts)} experts: {listed(experts)}"
        if self.rule != "weights" and not set.intersection(*map(graph.lineage, experts)):
            yield ("experts",), "they come from no one model, so there is no update to average"
        if self.rule != "weights" and len({_on_four_bits(graph, member) for member in experts}) > 1:
            yield (
                ("experts",),
                "some are trained on weights in four bits (`lora.base: nf4`) and some are not, so they are updates of "
                "different weights; use `rule: weights`",
            )
        if self.rule == "slerp" and len(experts) != 2:
            yield ("rule",), f"`slerp` goes between two experts, and there are {len(experts)}"


def _on_four_bits(graph: Graph, member: str) -> bool:
    loras = (getattr(graph.nodes[name].entry, "lora", None) for name in graph.lineage(member))
    return any(lora is not None and lora.base == "nf4" for lora in loras)
