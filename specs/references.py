"""Typed references: a slot says which artifact types it accepts and what it will use them for.

A name refers to a model, data set, reward or stage of the same study. `prompts.train` names one
part of a data set; `bon` names every member of the sweep `bon[n=2]`, `bon[n=4]`.
"""

from __future__ import annotations

import typing
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cache
from typing import Annotated, Any, Literal

from pydantic.fields import FieldInfo

from specs.base import Entry, Spec, form
from specs.problems import Path

Use = Literal["training", "guidance", "evaluation"]


@dataclass(frozen=True, slots=True)
class Accepts:
    """The artifact types a slot takes, and whether they shape a policy or only judge it."""

    types: tuple[str, ...]
    use: Use = "training"
    words: str = ""
    """What it takes, for messages, where the types are too many to list."""


ReferenceText = Annotated[
    str, form(r"^[A-Za-z][A-Za-z0-9_.=,\[\]+-]*$", "a reference is a name, `prompts.train` or `bon[n=4]`")
]

REWARDS = ("reward", "calibrated reward", "autoregressive reward model")
"""What gives a prompt and an answer one number."""

LanguageModel = Annotated[ReferenceText, Accepts(("language model",))]
"""Something with weights: an external model or what a training stage made."""
Policy = Annotated[ReferenceText, Accepts(("language model", "decoding rule"), "evaluation")]
"""Something that answers prompts: a language model, or a decoding rule over one."""
PreferencePairs = Annotated[ReferenceText, Accepts(("preference pairs",))]
Prompts = Annotated[ReferenceText, Accepts(("prompts", "preference pairs"))]
"""Of preference pairs the prompts, each once."""
GivenAnswers = Annotated[ReferenceText, Accepts(("preference pairs",), "evaluation")]
Responses = Annotated[ReferenceText, Accepts(("responses",))]
PairsOrPrompts = Annotated[ReferenceText, Accepts(("preference pairs", "prompts"))]
PairsOrResponses = Annotated[ReferenceText, Accepts(("preference pairs", "responses"))]
TrainingReward = Annotated[ReferenceText, Accepts(REWARDS, "training", "a reward")]
GuidanceReward = Annotated[ReferenceText, Accepts(REWARDS, "guidance", "a reward")]
EvaluationReward = Annotated[ReferenceText, Accepts(REWARDS, "evaluation", "a reward")]
PrefixReward = Annotated[
    ReferenceText, Accepts(("reward", "prefix scorer"), "guidance", "a reward model or prefix scorer")
]
"""What scores an answer up to any of its tokens."""
Scorer = Annotated[ReferenceText, Accepts((*REWARDS, "prefix scorer"), "guidance", "a prefix scorer or reward")]
AutoregressiveReward = Annotated[ReferenceText, Accepts(("autoregressive reward model",), "guidance")]
CalibratedReward = Annotated[ReferenceText, Accepts(("calibrated reward",), "training")]
Experts = Annotated[ReferenceText, Accepts(("language model", "reward"))]
"""What a soup is made of: all language models, or all reward models."""
Judges = Annotated[ReferenceText, Accepts(("judge",), "evaluation")]
"""What compares two answers to a prompt."""
AnyReward = Annotated[ReferenceText, Accepts(REWARDS, "evaluation", "a reward")]
"""A reward inside another: what it may be used for follows from where the outer one is used."""


@dataclass(frozen=True, slots=True)
class Slot:
    """A field that holds references."""

    attribute: str
    key: str
    accepts: Accepts
    many: bool


@cache
def slots(spec: type[Spec]) -> tuple[Slot, ...]:
    """The reference slots of a spec class, in the order of its fields."""
    found = []
    for attribute, field in spec.model_fields.items():
        accepts = next(_accepts(field), None)
        if accepts:
            many = any(typing.get_origin(t) in (tuple, dict) for t in _alternatives(field.annotation))
            found.append(Slot(attribute, field.alias or attribute, accepts, many))
    return tuple(found)


def _accepts(field: Any) -> Iterator[Accepts]:
    metadata: tuple[Any, ...] = getattr(field, "metadata", ()) or getattr(field, "__metadata__", ())
    yield from (m for m in metadata if isinstance(m, Accepts))
    annotation = field.annotation if isinstance(field, FieldInfo) else field
    for argument in typing.get_args(annotation):
        yield from _accepts(argument)


def _alternatives(annotation: Any) -> tuple[Any, ...]:
    return (annotation, *typing.get_args(annotation))


def references(entry: Spec) -> Iterator[tuple[Slot, Path, str]]:
    """Every reference that `entry` makes: its slot, its path inside the entry, and the name."""
    for slot in slots(type(entry)):
        value = getattr(entry, slot.attribute)
        if isinstance(value, dict):
            yield from ((slot, (slot.key, name), name) for name in value)
        elif isinstance(value, tuple):
            yield from ((slot, (slot.key, i), name) for i, name in enumerate(value))
        elif value is not None:
            yield slot, (slot.key,), value


def renamed(entry: Entry, names: dict[str, Any]) -> dict[str, Any]:
    """The fields of `entry` as plain values with every referenced name replaced by the values `names[name]`, spliced
    in. Where names that carry numbers (weights) come to one value, the numbers add up."""
    fields = entry.model_dump(mode="json")
    for slot in slots(type(entry)):
        value = fields[slot.key]
        if isinstance(value, dict):
            replaced: dict[str, Any] = {}
            for name, carried in value.items():
                for new in names[name]:
                    number = new in replaced and isinstance(carried, (int, float))
                    replaced[new] = replaced[new] + carried if number else carried
            fields[slot.key] = replaced
        elif isinstance(value, list):
            fields[slot.key] = [new for name in value for new in names[name]]
        elif value is not None:
            fields[slot.key] = names[value][0]
    return fields
