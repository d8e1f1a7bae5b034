"""The JSON Schema of the language, for editors, and the explanation of one field.

Built from the models plus what only files have: `extends`, `spread`, `replace`, `sweep`.
"""

from __future__ import annotations

import ast
import inspect
import textwrap
from typing import Any

from pydantic import BaseModel

from specs.base import FORMS, Internal
from specs.kinds import any_stage
from specs.load import FILE_KEYS, models_of
from specs.problems import did_you_mean
from specs.study import SECTIONS, Study

DIALECT = "https://json-schema.org/draft/2020-12/schema"


def schema() -> dict[str, Any]:
    """The schema of a study file."""
    made = language()
    for model in _all_models(Study):
        made["$defs"][model.__name__]["properties"]["replace"] = {
            "const": True,
            "description": "Inherit nothing of what the parent file writes here.",
        }
    made["properties"]["extends"] = {
        "type": "string",
        "description": "One parent file. Mappings merge deeply; a mapping with `replace: true` inherits nothing.",
    }
    made["properties"]["spread"] = {
        "const": False,
        "description": "The stages are written as they run, those of sweeps, grids and rounds one by one: an export says so.",
    }
    # What a parent may supply is not required beside `extends`, neither here nor inside of an entry.
    sections = {key: made["properties"][key] for key in SECTIONS}
    made["properties"] |= {key: {"type": "object", "description": s["description"]} for key, s in sections.items()}
    made["if"] = {"required": ["extends"]}
    made["else"] = {"required": made.pop("required"), "properties": sections}
    return made


def language() -> dict[str, Any]:
    """The schema of a whole study, nothing left to a parent."""
    made = Study.model_json_schema(by_alias=True)
    made["$schema"] = DIALECT
    made["title"] = "AlignFlow study"
    every: list[type[BaseModel]] = [Study, *_all_models(Study)]
    for model in every:
        definition = made if model is Study else made["$defs"].get(model.__name__)
        if definition:
            definition["description"] = " ".join((model.__doc__ or "").split())
            for key, text in descriptions(model).items():
                definition["properties"][key]["description"] = text
            for key, field in model.model_fields.items():
                if any(isinstance(m, Internal) for m in field.metadata):
                    definition["properties"].pop(field.alias or key)
    for model in models_of(any_stage()):
        definition = made["$defs"][model.__name__]
        definition["properties"]["sweep"] = {
            "type": "object",
            "additionalProperties": {"type": "array", "minItems": 1},
            "description": "Fields and the values each takes: one stage for every combination, named `stage[field=value]`.",
        }
        # A field that the sweep sets is not missing.
        definition["if"] = {"required": ["sweep"]}
        definition["else"] = {"required": definition.pop("required")}
        definition["required"] = [k for k in ("do", "method", "loss") if k in definition["properties"]]
    return made


def _all_models(model: type[BaseModel]) -> list[type[BaseModel]]:
    """Every model that `model` is made of."""
    inner = [m for field in model.model_fields.values() for m in models_of(field.annotation)]
    return [*inner, *(deep for m in inner for deep in _all_models(m))]


def descriptions(model: type[BaseModel]) -> dict[str, str]:
    """Each field's docstring, by key, those of its bases included."""
    texts: dict[str, str] = {}
    for owner in reversed(model.__mro__):
        if owner is BaseModel or not issubclass(owner, BaseModel):
            continue
        body = ast.parse(textwrap.dedent(inspect.getsource(owner))).body[0]
        assert isinstance(body, ast.ClassDef)
        for statement, following in zip(body.body, body.body[1:], strict=False):
            if (
                isinstance(statement, ast.AnnAssign)
                and isinstance(statement.target, ast.Name)
                and isinstance(following, ast.Expr)
                and isinstance(following.value, ast.Constant)
                and statement.target.id in model.model_fields
            ):
                field = model.model_fields[statement.target.id]
                texts[field.alias or statement.target.id] = " ".join(str(following.value.value).split())
    return texts


def explain(path: str) -> list[str]:
    """Lines about a field such as `stages.reward_model.beta`, or about what lies under a shorter path. Stages are
    named by their `do`, decoding rules as `stages.decode.<method>`, rewards by their `kind`. Raises `KeyError` with
    a sentence where there is none."""
    made = language()
    made["properties"] |= {key: schema()["properties"][key] for key in FILE_KEYS}
    node: dict[str, Any] = made
    name = "study"
    need = ""
    for part in path.split(".") if path else []:
        children = _children(made, node)
        if part not in children:
            known = f"; there are {', '.join(children)}" if children else "; nothing is inside it"
            hint = did_you_mean(part, children) or known
            raise KeyError(f"`{name}` has no `{part}`{hint}")
        need = _need(made, node, part, children[part])
        node, name = children[part], f"{name}.{part}" if name != "study" else part
    lines = [f"{name}: {_type(made, node)}{need}"]
    text = node.get("description") or _resolve(made, node).get("description")
    if text:
        lines += textwrap.wrap(text, 96, initial_indent="  ", subsequent_indent="  ")
    children = _children(made, node)
    width = max(map(len, children), default=0)
    for key, child in children.items():
        what = child.get("description") or _resolve(made, child).get("description") or ""
        head = f"  {key.ljust(width)}  {_type(made, child)}{_need(made, node, key, child)}"
        lines.append(head + (f": {textwrap.shorten(what, 90, placeholder=' ...')}" if what else ""))
    return lines


def _need(made: dict[str, Any], node: dict[str, Any], key: str, child: dict[str, Any]) -> str:
    """Whether a field must be written, else what stands for it."""
    if "default" in child:
        return f", default {_default(child['default'])}"
    mapping = _mapping(made, node)
    needed = mapping.get("required", []) + mapping.get("else", {}).get("required", [])
    return ", required" if key in needed else ""


def _mapping(made: dict[str, Any], node: dict[str, Any]) -> dict[str, Any]:
    """The schema of a mapping's fields, or of a union of such: the node's own, or that of its entries."""
    node = _resolve(made, node)
    if "properties" in node:
        return node
    inner = node.get("additionalProperties") or next(iter(node.get("patternProperties", {}).values()), None)
    if isinstance(inner, dict) and ("$ref" in inner or "oneOf" in inner):
        return _mapping(made, inner)
    options = (_resolve(made, option) for option in node.get("anyOf", []))
    return next((option for option in options if "properties" in option), node)


def _resolve(made: dict[str, Any], node: dict[str, Any]) -> dict[str, Any]:
    while "$ref" in node:
        node = made["$defs"][node["$ref"].rsplit("/", 1)[1]]
    return node


def _children(made: dict[str, Any], node: dict[str, Any]) -> dict[str, dict[str, Any]]:
    """What may follow in a path: the fields of a mapping, or the kinds of a union."""
    node = _mapping(made, node)
    if "properties" in node:
        return dict(node["properties"])
    found = {}
    for option in node.get("oneOf", []):
        target = _resolve(made, option)
        if "oneOf" in target:  # a union inside: `decode` by method, `prefix_scorer` by loss
            found[_resolve(made, target["oneOf"][0])["properties"]["do"]["const"]] = target
        else:
            found[target["properties"][node["discriminator"]["propertyName"]]["const"]] = target
    return found


def _type(made: dict[str, Any], node: dict[str, Any]) -> str:
    node = _resolve(made, node)
    if "const" in node:
        return f"`{node['const']}`"
    if "enum" in node:
        return "one of " + ", ".join(f"`{v}`" for v in node["enum"])
    if "anyOf" in node:
        return " or ".join(_type(made, option) for option in node["anyOf"])
    if "oneOf" in node:
        return "one of " + ", ".join(_children(made, node))
    kind = {
        "integer": "whole number", "string": "text", "object": "mapping", "array": "list", "boolean": "true or false",
    }.get(node.get("type", ""), node.get("type", "value"))  # fmt: skip
    bounds = {"minimum": ">=", "exclusiveMinimum": ">", "maximum": "<=", "exclusiveMaximum": "<"}
    limits = [f"{sign} {node[key]}" for key, sign in bounds.items() if key in node]
    written = [f"({FORMS[node['pattern']]})"] if node.get("pattern") in FORMS else []
    return " ".join([kind, *limits, *written])


def _default(value: Any) -> str:
    if isinstance(value, dict):
        return "{" + ", ".join(f"{key}: {_default(inner)}" for key, inner in value.items()) + "}"
    return "null" if value is None else str(value).lower() if isinstance(value, bool) else str(value)
