"""From files to one tree: `extends`, `--set` and `sweep` are worked out before anything is validated.

`extends` names one parent file; mappings merge deeply, other values replace, and a mapping with
`replace: true` inherits nothing. `--set a.b=c` writes one value. `sweep` on a stage makes one stage for each
combination, named `bon[n=4]`. Every value keeps the place where it was written.
"""

from __future__ import annotations

import itertools
import os
import re
from pathlib import Path as FilePath
from typing import Any

from specs.problems import Mark, Path, Problem, SpecError
from specs.sources import origin
from specs.yaml_tree import Positions, Tree, parse_yaml, read_yaml


def assemble(path: FilePath, overrides: list[str]) -> tuple[dict[str, Any], Positions, list[Problem]]:
    """The study's tree with everything merged and every sweep spread out, the places of its values, and what is wrong
    with its sweeps (whose stages are then left out). Raises `SpecError` where there is no tree."""
    tree, positions = _extended(path, ())
    for override in overrides:
        _set(tree, positions, override)
    problems: list[Problem] = []
    stages = tree.get("stages")
    if not isinstance(stages, dict):
        return tree, positions, problems
    for name in [name for name in stages if "[" in name]:
        message = "brackets name the members of a `sweep:`; write the sweep, or a name without them"
        problems.append(Problem(positions.nearest(("stages", name), "key"), ("stages", name), message))
        del stages[name]
    if any("sweep" in stage for stage in _mappings(stages)):
        places = _places_by_stage(positions)
        tree["stages"] = {
            name: stage
            for key, value in stages.items()
            for name, stage in _swept(key, value, places.get(key, []), positions, problems)
        }
    return tree, positions, problems


def _extended(path: FilePath, children: tuple[FilePath, ...]) -> tuple[dict[str, Any], Positions]:
    tree, positions = read_yaml(path)
    if not isinstance(tree, dict):
        problem = Problem(positions[(), "value"], (), "a study is a mapping: `version`, `name`, `stages`, ...")
        raise SpecError([problem])
    _anchor_paths(tree, path.resolve().parent)
    if "extends" not in tree:
        return _without_replace(tree), positions
    parent = tree.pop("extends")
    mark = positions[("extends",), "value"]
    if not isinstance(parent, str):
        raise SpecError([Problem(mark, ("extends",), "the path of one parent file")])
    target = (path.parent / parent).resolve()
    family = (*children, path.resolve())
    if target in family:
        chain = " -> ".join(p.name for p in (*family[family.index(target) :], target))
        raise SpecError([Problem(mark, ("extends",), f"a cycle: {chain}")])
    if not os.path.isfile(target):  # unlike `Path.is_file`, also of names that no file can have
        raise SpecError([Problem(mark, ("extends",), f"no such file: {target}")])
    base, places = _extended(target, family)
    _merge(base, tree)
    places.update(positions)
    return base, places


def _merge(base: Tree, child: Tree) -> None:
    """Lays `child` over `base` in place."""
    for key, value in child.items():
        inherited = base.get(key)
        if isinstance(value, dict) and isinstance(inherited, dict) and value.get("replace") is not True:
            _merge(inherited, value)
        else:
            base[key] = _without_replace(value)


def _without_replace(value: Tree) -> Tree:
    if not isinstance(value, dict):
        return value
    return {k: _without_replace(v) for k, v in value.items() if not (k == "replace" and v is True)}


def _anchor_paths(tree: dict[str, Any], folder: FilePath) -> None:
    """Makes relative `source` paths absolute: they are relative to the file that holds them."""
    for section in ("models", "data", "rewards"):
        for entry in _mappings(tree.get(section)):
            source = entry.get("source")
            if not isinstance(source, str) or not source or source.startswith("${env:"):
                continue
            if origin(source, entry.get("revision")) == "path":
                entry["source"] = str(folder / os.path.expanduser(source))


def _mappings(value: Tree) -> list[dict[str, Any]]:
    return [v for v in value.values() if isinstance(v, dict)] if isinstance(value, dict) else []


def _set(tree: dict[str, Any], positions: Positions, override: str) -> None:
    mark = Mark(f"--set {override}")
    key, equals, text = override.partition("=")
    path: Path = tuple(key.split("."))
    if path[0] in ("extends", "version"):
        raise SpecError([Problem(mark, path, "stands in a file; `--set` comes after all files are merged")])
    if not equals or not all(path):
        raise SpecError([Problem(mark, (), "write it as `--set stages.rm.epochs=2`")])
    (value,), _ = parse_yaml(f"- {text}", mark.source)  # an item of a list, so that it may be `null`
    node: Tree = tree
    for i, part in enumerate(path[:-1]):
        if node.get(part) is None:
            node[part] = {}
            positions[path[: i + 1], "value"] = positions[path[: i + 1], "key"] = mark
        node = node[part]
        if not isinstance(node, dict):
            raise SpecError([Problem(mark, path[: i + 1], "is not a mapping, so nothing inside it can be set")])
    node[path[-1]] = value
    positions[path, "key"] = positions[path, "value"] = mark


Places = list[tuple[Path, str, Mark]]


def _places_by_stage(positions: Positions) -> dict[str | int, Places]:
    places: dict[str | int, Places] = {}
    for (path, part), mark in positions.items():
        if path[:1] == ("stages",) and len(path) > 1:
            places.setdefault(path[1], []).append((path[2:], part, mark))
    return places


def _swept(
    name: str, stage: Tree, places: Places, positions: Positions, problems: list[Problem]
) -> list[tuple[str, Tree]]:
    if not isinstance(stage, dict) or "sweep" not in stage:
        return [(name, stage)]
    sweep = stage["sweep"]
    path: Path = ("stages", name, "sweep")

    def wrong(path: Path, message: str) -> list[tuple[str, Tree]]:
        problems.append(Problem(positions.nearest(path), path, message))
        return []

    if not isinstance(sweep, dict) or not sweep:
        return wrong(path, "names fields and their values: `{n: [2, 4, 8]}`")
    for key, values in sweep.items():
        if not isinstance(values, list) or not values:
            return wrong((*path, key), "a list of values")
        if any(isinstance(v, (dict, list)) or v is None or not _MEMBER.fullmatch(_show(v)) for v in values):
            return wrong((*path, key), "each value is a number, a name or true/false")
        if len(set(map(str, values))) < len(values):
            return wrong((*path, key), "the same value twice")
        if key in stage:
            return wrong((*path, key), f"`{key}` is set on the stage as well; keep one")
    members = []
    for choice in itertools.product(*(enumerate(values) for values in sweep.values())):
        chosen = {key: value for key, (_, value) in zip(sweep, choice, strict=True)}
        member = f"{name}[{','.join(f'{k}={_show(v)}' for k, v in chosen.items())}]"
        here: Path = ("stages", member)
        positions.update({((*here, *inner), part): mark for inner, part, mark in places})
        for key, (i, _) in zip(sweep, choice, strict=True):
            # `nearest`: of what `--set` or an alias brought in, the inner places are not known.
            positions[(*here, key), "key"] = positions.nearest((*path, key), "key")
            positions[(*here, key), "value"] = positions.nearest((*path, key, i))
        members.append((member, {k: v for k, v in stage.items() if k != "sweep"} | chosen))
    return members


_MEMBER = re.compile(r"[A-Za-z0-9_.+-]+")


def _show(value: Any) -> str:
    return str(value).lower() if isinstance(value, bool) else str(value)
