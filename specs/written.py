"""The steps of a plan written down as JSON, and read again: what they were, whatever has become of the files that they name."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import replace
from typing import Any

from pydantic import TypeAdapter, ValidationError

from specs.data import Data
from specs.graph import Node
from specs.judges import Judge
from specs.kinds import kind
from specs.models import Model
from specs.plan import Step, fingerprint
from specs.problems import UserError
from specs.rewards import Reward
from specs.stage import Stage

TYPES: dict[str, Any] = {"models": Model, "data": Data, "rewards": Reward, "judges": Judge}


def write(steps: Iterable[Step]) -> list[dict[str, Any]]:
    """The steps as JSON, in their order."""
    return [
        {
            "name": step.name,
            "section": step.node.section,
            "type": _type(step.node),
            "entry": step.node.entry.model_dump(mode="json", by_alias=True, exclude_unset=True),
            "produces": step.node.produces,
            "part": step.node.part,
            "inputs": [list(pair) for pair in step.inputs],
            "payload": dict(step.payload),
            "held_by": step.held_by,
        }
        for step in steps
    ]


def read(written: Iterable[dict[str, Any]]) -> dict[str, Step]:
    """The steps by name. Raises `UserError` where the language has changed since they were written."""
    return {one["name"]: _read(one) for one in written}


def _read(one: dict[str, Any]) -> Step:
    try:
        wanted = TYPES[one["type"]] if one["type"] in TYPES else kind(one["entry"]["do"])
        entry = TypeAdapter(wanted).validate_python(one["entry"])
    except (ValidationError, KeyError) as error:
        told = error.errors()[0]["msg"] if isinstance(error, ValidationError) else f"there is no {error}"
        raise UserError(f"the language has changed since `{one['name']}` was built: {told}") from None
    node = Node(one["name"], one["section"], entry, one["produces"], one["part"])
    inputs = tuple((slot, name) for slot, name in one["inputs"])
    payload = one["payload"]
    return Step(node.name, node, entry.kind_name, inputs, payload, fingerprint(payload), one["held_by"])


def _type(node: Node) -> str:
    """The section that its kind belongs to; a promoted model stands among the models, whatever made it."""
    if isinstance(node.entry, Stage):
        return "stages"
    return next((s for s in ("models", "data", "judges") if isinstance(node.entry, TYPES[s])), "rewards")


def under(steps: dict[str, Step], last: str, name: str) -> tuple[Step, ...]:
    """`last` and the steps below it as another study has them among its models: it under `name`, the others behind that."""
    below, waiting = set[str](), [last]
    while waiting:
        here = waiting.pop()
        if here not in below:
            below.add(here)
            waiting += [i for _, i in steps[here].inputs]
    names = {one: f"{name}:{one}" for one in below} | {last: name}
    return tuple(
        replace(
            step,
            name=names[one],
            node=replace(step.node, name=names[one], section="models"),
            inputs=tuple((slot, names[i]) for slot, i in step.inputs),
        )
        for one, step in steps.items()  # in an order in which inputs come first
        if one in below
    )
