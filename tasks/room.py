"""Whether models have positions for the longest prompt and what is to be written after it: told before anything runs.

Models and rows that are not on this machine yet are left to the stage that reads them, and so are rows that a stage makes.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import TYPE_CHECKING

from registry.artifacts import Artifact
from registry.lengths import lengths
from registry.shapes import folder_of_model
from specs.data import Data
from specs.problems import Path as SpecPath
from specs.problems import UserError
from specs.reward_training import RRHF
from tasks.standing import root

if TYPE_CHECKING:
    from tasks.view import View  # which asks here

WRITERS = ("from", "reference", "policies")
"""Slots of what writes."""
POSITIONS = ("max_position_embeddings", "n_positions")


def problems(view: View) -> Iterator[tuple[SpecPath, str]]:
    """Stages to be built that ask for more tokens than some model can write after the longest of their prompts."""
    for name in view.to_build():
        stage = view.artifact(name)
        budget = getattr(stage.entry, "budget", None)
        new = getattr(budget or stage.entry, "max_new_tokens", None)
        slots = ("prompts", "held_out", *(["data"] if isinstance(stage.entry, RRHF) and stage.entry.drawn else ()))
        prompts = [rows for slot in slots for rows in stage.inputs.get(slot, ())]
        if new is None or not prompts:
            continue
        writers = {root(one).fingerprint: root(one) for slot in WRITERS for one in stage.inputs.get(slot, ())}
        for model in writers.values():
            limit = _positions(model)
            longest = max((_longest(rows, model, view) for rows in prompts), default=0)
            if limit is not None and longest + new > limit:
                where = ("budget", "max_new_tokens") if budget else ("max_new_tokens",)
                yield ("stages", name, *where), no_room(model.name, limit, longest, new)


def no_room(name: str, limit: int, longest: int, new: int) -> str:
    """That a model of `limit` positions cannot write so many tokens after a prompt of `longest` (0: not known)."""
    before = f", and the longest prompt has {longest} before {new} new ones" if longest else f", not {new}"
    return f"`{name}` reads {limit} tokens{before}; shorten the prompts or `max_new_tokens`"


def _positions(model: Artifact) -> int | None:
    folder = folder_of_model(model)
    try:
        config = json.loads((folder / "config.json").read_bytes()) if folder else {}
        config = config.get("text_config") or config
        return next((int(config[key]) for key in POSITIONS if config.get(key)), None)
    except (OSError, ValueError, AttributeError):  # whoever loads it says what is wrong with it
        return None


def _longest(rows: Artifact, model: Artifact, view: View) -> int:
    """0 where it is not known."""
    if not isinstance(rows.entry, Data) or folder_of_model(model) is None:
        return 0
    try:
        found = lengths(rows, model, view.home)
    except UserError:  # told of the rows themselves
        return 0
    return max(found.prompts, default=0) if found and found.exact else 0
