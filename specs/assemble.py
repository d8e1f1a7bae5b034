"""From files to one tree: `extends`, `--set` and `sweep` are worked out before anything is validated.

`extends` names one parent file; mappings merge deeply, other values replace, and a mapping with
`replace: true` inherits nothing. `--set a.b=c` writes one value. Stages that stand for several are then spread out
(`specs.spread`), but for those of a file with `spread: false`, as an export writes them. Every value keeps the place where it
was written.
"""

from __future__ import annotations

import os
from pathlib import Path as FilePath
from typing import Any

from specs.problems import Mark, Path, Problem, SpecError, did_you_mean
from specs.sources import origin
from specs.spread import spread
from specs.study import SECTIONS
from specs.yaml_tree import Positions, Tree, parse_yaml, read_yaml

BEGINS = ("do", "kind", "source")
"""What `--set` may begin a new entry with."""


def assemble(path: FilePath, overrides: list[str]) -> tuple[dict[str, Any], Positions, list[Problem]]:
    """The study's tree with everything merged and every sweep spread out, the places of its values, and what is wrong
    with stages that stand for several (which are then left out). Raises `SpecError` where there is no tree."""
    tree, positions = _extended(path, ())
    for override in overrides:
        _set(tree, positions, override)
    problems: list[Problem] = []
    stages = tree.get("stages")
    if tree.get("spread") is False:  # else it is an unknown key
        del tree["spread"]
        return tree, positions, problems
    if not isinstance(stages, dict):
        return tree, positions, problems
    for name in [name for name in stages if "[" in name]:
        message = "brackets name the members of a `sweep:`; write the sweep, or a name without them"
        problems.append(Problem(positions.nearest(("stages", name), "key"), ("stages", name), message))
        del stages[name]
    tree["stages"] = spread(stages, positions, problems)
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
            if i == 1 and path[0] in SECTIONS and path[-1] not in BEGINS:
                known = [name for name in node if isinstance(name, str)]
                raise SpecError(
                    [Problem(mark, path[:2], f"there is none of that name{did_you_mean(str(part), known)}")]
                )
            node[part] = {}
            positions[path[: i + 1], "value"] = positions[path[: i + 1], "key"] = mark
        node = node[part]
        if not isinstance(node, dict):
            raise SpecError([Problem(mark, path[: i + 1], "is not a mapping, so nothing inside it can be set")])
    node[path[-1]] = value
    positions[path, "key"] = positions[path, "value"] = mark
