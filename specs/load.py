"""A file to a `Study`, or everything that is wrong with it at once.

Each entry is validated by itself, so that a mistake in one hides none in another; references are
then checked among the entries that stand.
"""

from __future__ import annotations

import os
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path as FilePath
from typing import Annotated, Any, get_args

from pydantic import BaseModel, TypeAdapter, ValidationError
from pydantic_core import ErrorDetails

from specs.assemble import assemble
from specs.base import (
    FORMS,
    NAME_PATTERN,
    NAMING,
    STAGE_PATTERN,
    Entry,
    Spec,
)
from specs.environment import environment_problems
from specs.graph import Graph, graph_problems
from specs.kinds import KINDS, any_stage, kind
from specs.problems import Mark, Path, Problem, SpecError, did_you_mean
from specs.stage import Stage
from specs.study import SECTIONS, Study, entries
from specs.yaml_tree import Positions

FILE_KEYS = ("extends", "spread")
"""What only a file has beside the fields of a study."""


@dataclass(frozen=True)
class Loaded:
    """A study and the places its values were written at, for messages that come later."""

    study: Study
    positions: Positions
    path: FilePath

    def problem(self, path: Path, message: str) -> Problem:
        return Problem(self.positions.nearest(path), path, message)

    def forced(self, names: list[str]) -> frozenset[str]:
        """The stages that `--force` names; the name of a sweep means its members. Raises `SpecError`."""
        graph = Graph(entries(self.study))
        stages = {name: [m for m in graph.members(name) if m in self.study.stages] for name in names}
        unknown = [name for name, members in stages.items() if not members]
        if unknown:
            known = [*self.study.stages, *graph.sweeps]
            raise SpecError([
                Problem(Mark(f"--force {name}"), (), f"there is no such stage{did_you_mean(name, known)}")
                for name in unknown
            ])  # fmt: skip
        return frozenset(m for members in stages.values() for m in members)


def load(
    path: FilePath,
    overrides: list[str] | None = None,
    environment: Mapping[str, str] = os.environ,
) -> Loaded:
    """The study in the file at `path` with `--set` overrides applied. Raises `SpecError` with every problem."""
    tree, positions, problems = assemble(path, overrides or [])

    def add(path: Path, message: str, part: str = "value") -> None:
        problems.append(Problem(positions.nearest(path, part), path, message))

    fields: dict[str, Any] = {}
    entries: list[tuple[str, str, Entry]] = []
    broken = {str(problem.path[1]).split("[")[0] for problem in problems}
    left_out = bool(problems)  # stages that stand for several, and were there
    for key, value in tree.items():
        if key not in Study.model_fields:
            add((key,), f"unknown key{did_you_mean(key, [*Study.model_fields, *FILE_KEYS])}", "key")
        elif key in SECTIONS and isinstance(value, dict):
            for name, entry in value.items():
                _validate_entry(key, name, entry, environment, entries, broken, add)
        elif value is not None or not Study.model_fields[key].is_required():  # else it is missing
            fields[key] = _validate(Study.model_fields[key], value, (key,), environment, add)
    for key, field in Study.model_fields.items():
        if field.is_required() and tree.get(key) in ({}, None) and not (key == "stages" and left_out):
            add((key,), f"is missing; add `{key}:`")
    _check_unique(entries, add)
    for where, message in graph_problems(Graph(entries), broken):
        add(where, message, "key" if message.startswith("a cycle") else "value")
    for section in SECTIONS:
        fields[section] = {name: entry for s, name, entry in entries if s == section}
    if problems:
        error = SpecError(problems)
        leaves = {key: value for key, value in fields.items() if value is not None} | {"stages": {}, "judges": {}}
        error.sound = Loaded(Study.model_construct(**leaves), positions, path)
        raise error
    return Loaded(Study.model_construct(**fields), positions, path)


_ADAPTERS: dict[tuple[str, str], TypeAdapter[Any]] = {}


def _adapter(section: str, value: Any) -> TypeAdapter[Any]:
    """What validates an entry. Of stages the one kind that is meant, where it is clear which."""
    do = value.get("do") if section == "stages" and isinstance(value, dict) else None
    known = do if isinstance(do, str) and do in KINDS else ""
    if (section, known) not in _ADAPTERS:
        _ADAPTERS[section, known] = TypeAdapter(_annotation(section, known))
    return _ADAPTERS[section, known]


def _annotation(section: str, do: str) -> Any:
    if section != "stages":
        return get_args(Study.model_fields[section].annotation)[1]
    return kind(do) if do else any_stage()


def _validate_entry(
    section: str, name: str, value: Any, environment: Mapping[str, str], entries: Any, broken: set[str], add: Any
) -> None:
    path: Path = (section, name)
    if not _is_name(name, section):
        add(path, NAMING, "key")
        return
    try:
        entry = _adapter(section, value).validate_python(value)
    except ValidationError as error:
        broken.add(name.split("[")[0])
        for problem in error.errors(include_url=False):
            add(*_place(path, value, problem))
        return
    entries.append((section, name, entry))
    for where, message in environment_problems(entry, environment):
        add((*path, *where), message)


def _is_name(name: str, section: str) -> bool:
    return re.fullmatch(STAGE_PATTERN if section == "stages" else NAME_PATTERN, name) is not None


def _validate(field: Any, value: Any, path: Path, environment: Mapping[str, str], add: Any) -> Any:
    annotation: Any = Annotated[(field.annotation, *field.metadata)] if field.metadata else field.annotation
    try:
        result = TypeAdapter(annotation).validate_python(value)
    except ValidationError as error:
        for problem in error.errors(include_url=False):
            add(*_place(path, value, problem))
        return None
    if isinstance(result, Spec):
        for where, message in environment_problems(result, environment):
            add((*path, *where), message)
    return result


def _place(path: Path, value: Any, error: ErrorDetails) -> tuple[Path, str, str]:
    """The path, message and part ("key" or "value") of one Pydantic error. Pydantic's location holds the
    tags of discriminated unions, which are no part of the file: they are stepped over."""
    here, node = list(path), value
    *inner, last = error["loc"] or ("",)
    for step in (*inner, last) if error["loc"] else ():
        inside = step in node if isinstance(node, dict) else isinstance(node, list) and step in range(len(node))
        if inside:
            here.append(step)
            node = node[step]
        elif step is last and error["type"] == "missing":
            here.append(step)
    kind = error["type"]
    if kind == "extra_forbidden":
        known = _keys_beside(error["loc"], path, value)
        return tuple(here), f"unknown key{did_you_mean(str(here[-1]), known)}", "key"
    if kind == "missing":
        return tuple(here), f"is missing; add `{last}:`", "value"
    if kind in ("union_tag_invalid", "union_tag_not_found"):
        return _tag_problem(tuple(here), node, error)
    if kind == "model_attributes_type" and here[0] in ("stages", "rewards"):
        return tuple(here), f"a mapping with `{'do' if here[0] == 'stages' else 'kind'}:`", "value"
    return tuple(here), say(error), "key" if last == "[key]" else "value"


def _keys_beside(loc: tuple[int | str, ...], path: Path, value: Any) -> list[str]:
    """The keys that would have been allowed where an unknown one stands."""
    if path[0] in SECTIONS:
        do = value.get("do") if isinstance(value, dict) else None
        models = models_of(_annotation(str(path[0]), do if isinstance(do, str) and do in KINDS else ""))
    else:
        models = models_of(Study.model_fields[str(path[0])].annotation)
    for step in loc[:-1]:
        tagged = [m for m in models if step in _tags(m)]
        if tagged:
            models = tagged
        else:
            inner = [m.model_fields[f] for m in models for f in m.model_fields if f == step]
            models = [i for field in inner for i in models_of(field.annotation)] or models
    keys = [field.alias or name for m in models for name, field in m.model_fields.items()]
    return [*keys, "sweep"] if path[0] == "stages" and len(loc) <= 3 else keys


def models_of(annotation: Any) -> list[type[BaseModel]]:
    """The models that a type names, unions and containers opened."""
    if annotation is Stage:
        return models_of(any_stage())
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        return [annotation]
    return [m for argument in get_args(annotation) for m in models_of(argument)]


def _tags(model: type[BaseModel]) -> list[Any]:
    return [
        tag
        for key in ("do", "method", "loss", "by", "kind")
        if key in model.model_fields
        for tag in get_args(model.model_fields[key].annotation)
    ]


def _tag_problem(path: Path, node: Any, error: ErrorDetails) -> tuple[Path, str, str]:
    key = error["ctx"]["discriminator"].strip("'")
    expected = error["ctx"].get("expected_tags", "").replace("'", "")
    tags = [t.strip() for t in expected.split(",")] if expected else []
    if not isinstance(node, dict):
        return path, f"a mapping with `{key}:`", "value"
    if key not in node:
        return path, f"`{key}` is missing; add `{key}:` with one of {_choices(key)}", "value"
    word = str(node[key])
    hint = did_you_mean(word, tags) or f"; there are {', '.join(tags)}"
    what = "kind of stage" if key == "do" else key
    return (*path, key), f"`{word}` is not a {what}{hint}", "value"


def _choices(key: str) -> str:
    models = models_of(any_stage()) + models_of(get_args(Study.model_fields["rewards"].annotation)[1])
    tags = [t for m in models if key in m.model_fields for t in get_args(m.model_fields[key].annotation)]
    return ", ".join(dict.fromkeys(map(str, tags)))


_SAYINGS = {
    "int_type": "takes a whole number",
    "float_type": "takes a number",
    "bool_type": "takes true or false",
    "string_type": "takes text",
    "dict_type": "takes a mapping",
    "model_type": "takes a mapping",
    "model_attributes_type": "takes a mapping",
    "tuple_type": "takes a list",
    "finite_number": "takes a finite number",
}


def say(error: ErrorDetails) -> str:
    """What is wrong with a value, by a Pydantic error."""
    shown = error["input"]
    text = "the text " if isinstance(shown, str) and error["type"] in ("int_type", "float_type", "bool_type") else ""
    got = f", not {text}`{shown}`" if isinstance(shown, (str, int, float, bool)) else ""
    kind, context = error["type"], error.get("ctx", {})
    if kind in _SAYINGS:
        return _SAYINGS[kind] + got
    if kind == "too_short":
        return f"needs {context['min_length']} at least"
    if kind == "literal_error":
        words = [w.strip(" '") for w in context["expected"].replace(" or ", ", ").split(",")]
        if shown in words:
            return f"takes the number {shown}, not text; leave the quotes out"
        hint = did_you_mean(str(shown), words) or f"; there are {', '.join(words)}"
        return f"`{shown}` is not one of the choices{hint}"
    if kind == "string_pattern_mismatch":
        return f"{FORMS[context['pattern']]}, not `{shown}`"
    if kind == "value_error":
        return str(context["error"])
    message = error["msg"][0].lower() + error["msg"][1:]
    return message.replace("input should be", "must be") + got


def _check_unique(entries: list[tuple[str, str, Entry]], add: Any) -> None:
    first: dict[str, str] = {}
    for section, name, _ in entries:
        if name in first:
            add((section, name), f"`{name}` is also in `{first[name]}`; names are shared by all sections", "key")
        first.setdefault(name, section)
