"""Forward passes of models and the positions in them, counted by hooks, whoever runs the models."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any


@dataclass
class Passes:
    """Forward passes of a model, and the positions in them."""

    passes: int = 0
    positions: int = 0


@contextmanager
def counted(*models: Any) -> Iterator[list[Passes]]:
    """What the bodies of `models` are asked for meanwhile."""
    found = [Passes() for _ in models]

    def count(one: Passes) -> Callable[..., None]:
        def before(module: Any, given: Any, named: Any) -> None:
            one.passes += 1
            one.positions += (named["input_ids"] if "input_ids" in named else given[0]).numel()

        return before

    hooks = [
        model.base_model.register_forward_pre_hook(count(one), with_kwargs=True)
        for model, one in zip(models, found, strict=True)
    ]
    try:
        yield found
    finally:
        for hook in hooks:
            hook.remove()


def told(counts: Sequence[Passes]) -> str:
    return " and ".join(f"{one.passes} passes of {one.positions} positions" for one in counts)
