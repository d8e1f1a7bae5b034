"""Weights that several adapted models stand on, in memory once.

Each model is a tree of modules of its own over the same tensors; what its adapters have learnt lies beside them, never in them.
"""

from __future__ import annotations

import copy
from collections.abc import Callable
from itertools import chain
from typing import Any


class Bases:
    """See the module."""

    def __init__(self) -> None:
        self._held: dict[tuple[str, str], Any] = {}

    def of(self, fingerprint: str, precision: str, load: Callable[[], Any]) -> Any:
        """A model over the weights of that name and precision, which `load` brings the first time. They are not to be
        written to."""
        key = (fingerprint, precision)
        if key not in self._held:
            self._held[key] = load()
        base = self._held[key]
        kept = {id(tensor): tensor for tensor in chain(base.parameters(), base.buffers())}
        return copy.deepcopy(base, kept)
