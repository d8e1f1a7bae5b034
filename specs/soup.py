"""Weight interpolation: rewarded soups (Ramé et al., arXiv 2306.04488), WARM (2401.12187), SLERP (WARP, 2406.16768).

`weights: {grid: 11}` makes one stage for each point of a lattice on the simplex, named by its weights: `soup[0.3,0.7]`.
"""

from typing import Annotated, Any, ClassVar, Literal

from pydantic import BeforeValidator, Field, field_validator

from specs.base import NonNegative, Spec
from specs.references import Experts
from specs.stage import Stage


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
    experts: Annotated[tuple[Experts, ...], Field(min_length=1), BeforeValidator(_listed)]
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
