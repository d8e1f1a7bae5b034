"""The form in which the Prefect UI shows a study before a run: the parameter schema of one deployment.

It is made for this very study. Each stage is a property with the schema of its own kind, so that no union is left for the
page to guess about: `do`, `method` and `kind` are constants. The server refuses what does not fit it; what only the
language knows (references, files) is checked when the run begins.
"""

from __future__ import annotations

import json
import re
from functools import cache
from typing import Any

from specs.base import Internal, Spec
from specs.schema import descriptions
from specs.study import Study

ABSENT = ("schedule",)
"""Parts of a study that do nothing in a run."""


def parameters(study: Study) -> dict[str, Any]:
    """The study as a parameter: what its file says, without what stands for nothing."""
    spec = study.model_dump(mode="json", by_alias=True, exclude_unset=True, exclude={*ABSENT})
    return {key: value for key, value in spec.items() if value != {}}


def schema(study: Study, others: dict[str, Any]) -> dict[str, Any]:
    """The schema of the flow's parameters; `others` are those beside the study, as Prefect describes them."""
    definitions: dict[str, Any] = {}
    shown = _object(study, definitions) | {"title": "study", "position": 0}
    properties = {"study": shown, **others}
    return {
        "title": "Parameters",
        "type": "object",
        "required": ["study"],
        "properties": properties,
        "definitions": _named_in(properties, definitions),
    }


def _named_in(part: Any, definitions: dict[str, Any]) -> dict[str, Any]:
    """The definitions that a part of the schema needs."""
    found: dict[str, Any] = {}
    waiting = [part]
    while waiting:
        for name in re.findall(r"#/definitions/(\w+)", json.dumps(waiting.pop())):
            if name not in found:
                found[name] = definitions[name]
                waiting.append(definitions[name])
    return found


def _object(spec: Spec, definitions: dict[str, Any]) -> dict[str, Any]:
    made, texts = _of_kind(type(spec))
    definitions.update(made.get("$defs", {}))
    properties: dict[str, Any] = {}
    for name, field in type(spec).model_fields.items():
        key, value = field.alias or name, getattr(spec, name)
        is_internal = any(isinstance(m, Internal) for m in field.metadata)
        if key in ABSENT or value == {} or (is_internal and name not in spec.model_fields_set):
            continue
        if is_internal or (isinstance(spec, Study) and key in ("version", "name")):
            shown: dict[str, Any] = {"const": value, "type": _TYPES[type(value)]}
        elif isinstance(value, Spec):
            shown = _object(value, definitions)
        elif isinstance(value, dict) and all(isinstance(inner, Spec) for inner in value.values()):
            shown = _mapping(value, definitions)
        else:
            shown = made["properties"][key]
        about = {"description": texts[key]} if key in texts else {}
        properties[key] = shown | about | {"title": key, "position": len(properties)}
    return {
        "type": "object",
        "description": " ".join((type(spec).__doc__ or "").split()),
        "properties": properties,
        "required": [key for key in made.get("required", []) if key in properties],
        "additionalProperties": False,
    }


@cache
def _of_kind(kind: type[Spec]) -> tuple[dict[str, Any], dict[str, str]]:
    """The schema of a kind, and what each of its fields means."""
    return kind.model_json_schema(by_alias=True, ref_template="#/definitions/{model}"), descriptions(kind)


_TYPES = {int: "integer", str: "string"}


def _mapping(entries: dict[str, Spec], definitions: dict[str, Any]) -> dict[str, Any]:
    """Named entries. Others cannot be added in the form: a reference to them would have no kind."""
    shown = {
        name: _object(entry, definitions) | {"title": name, "position": position}
        for position, (name, entry) in enumerate(entries.items())
    }
    return {"type": "object", "properties": shown, "required": list(entries), "additionalProperties": False}
