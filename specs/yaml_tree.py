"""Strict YAML 1.2 with positions: text to plain values, and the place of each key and value.

Plain scalars follow the YAML 1.2 core schema (`no` is text, `010` is ten, `1e-5` is a number).
Refused with their place: duplicate keys, tags, merge keys, second documents, tabs, text that is not UTF-8,
aliases that multiply a small file into a large one, and files over one megabyte.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path as FilePath
from typing import Any

from ruamel.yaml import YAML
from ruamel.yaml.error import MarkedYAMLError, YAMLError
from ruamel.yaml.events import (
    AliasEvent,
    DocumentStartEvent,
    MappingEndEvent,
    MappingStartEvent,
    ScalarEvent,
    SequenceEndEvent,
    SequenceStartEvent,
)
from ruamel.yaml.reader import ReaderError

from specs.problems import Mark, Path, Problem, SpecError

MAX_BYTES = 1_000_000
MAX_NODES = 200_000
MAX_DEPTH = 32

Tree = Any
"""Plain values: dict, list, str, int, float, bool, None."""

_INTEGER = re.compile(r"[-+]?[0-9]+|0o[0-7]+|0x[0-9a-fA-F]+")
_FLOAT = re.compile(r"[-+]?(\.[0-9]+|[0-9]+(\.[0-9]*)?)([eE][-+]?[0-9]+)?")
_NOT_FINITE = re.compile(r"[-+]?\.(inf|Inf|INF)|\.(nan|NaN|NAN)")
_CONSTANTS = {"": None, "~": None} | {
    spelling: value
    for word, value in (("null", None), ("true", True), ("false", False))
    for spelling in (word, word.capitalize(), word.upper())
}


class Positions(dict[tuple[Path, str], Mark]):
    """Where each `(path, "key" | "value")` was written."""

    def nearest(self, path: Path, part: str = "value") -> Mark:
        """The place of `path`, or of its nearest parent that was written."""
        if (path, part) in self:
            return self[path, part]
        while (path, "value") not in self:
            path = path[:-1]
        return self[path, "value"]


def read_yaml(path: FilePath) -> tuple[Tree, Positions]:
    """The values of the file at `path` and their positions. Raises `SpecError`."""

    def stop(message: str) -> SpecError:
        return SpecError([Problem(Mark(str(path)), (), message)])

    try:
        size = path.stat().st_size
        if size > MAX_BYTES:
            raise stop(
                f"the file is {size / 1e6:.1f} MB and a spec is at most {MAX_BYTES / 1e6:.0f} MB; "
                "rows belong in files that `data:` names"
            )
        content = path.read_bytes()
    except FileNotFoundError:
        raise stop("no such file") from None
    except OSError as error:
        raise stop(f"cannot be read: {error.strerror}") from None
    try:
        text = content.decode("utf-8")
    except UnicodeDecodeError as error:
        line = content.count(b"\n", 0, error.start) + 1
        column = error.start - content.rfind(b"\n", 0, error.start)
        mark = Mark(str(path), line, column)
        raise SpecError([Problem(mark, (), "not UTF-8 text; save the file as UTF-8")]) from None
    return parse_yaml(text, str(path))


def parse_yaml(text: str, source: str) -> tuple[Tree, Positions]:
    """As `read_yaml`, from text; `source` names it in messages."""
    reader = _Reader(source)
    try:
        reader.read(YAML(typ="safe", pure=True).parse(text))  # the C parser is one of YAML 1.1
    except MarkedYAMLError as error:
        mark = error.problem_mark or error.context_mark
        place = Mark(source, mark.line + 1, mark.column + 1) if mark else Mark(source)
        raise SpecError([Problem(place, (), _explain(error, text))]) from None
    except ReaderError as error:
        line = text.count("\n", 0, error.position) + 1
        place = Mark(source, line, error.position - text.rfind("\n", 0, error.position))
        raise SpecError(
            [Problem(place, (), f"the character #x{error.character:04x}; YAML allows none like it")]
        ) from None
    except YAMLError as error:
        raise SpecError([Problem(Mark(source), (), f"not YAML: {' '.join(str(error).split())}")]) from None
    if reader.problems:
        raise SpecError(reader.problems)
    return reader.tree, reader.positions


def _explain(error: MarkedYAMLError, text: str) -> str:
    mark = error.problem_mark
    before = text[: mark.index + 1].rpartition("\n")[2] if mark else ""
    if "\t" in before:
        return "a tab; YAML is indented with spaces"
    context = f" {error.context}" if error.context else ""
    hint = "; quote `${env:...}` inside of `{}`" if "${" in before else ""
    return f"not YAML: {error.problem}{context}{hint}"


class _Reader:
    """Builds values from parser events, keeping places and collecting problems."""

    def __init__(self, source: str):
        self.source = source
        self.tree: Tree = None
        self.positions = Positions()
        self.problems: list[Problem] = []
        self.anchors: dict[str, tuple[Tree, int]] = {}
        self.nodes = 0

    def mark(self, event: Any) -> Mark:
        return Mark(self.source, event.start_mark.line + 1, event.start_mark.column + 1)

    def problem(self, event: Any, path: Path, message: str) -> None:
        self.problems.append(Problem(self.mark(event), path, message))

    def read(self, events: Iterator[Any]) -> None:
        documents = 0
        for event in events:
            if isinstance(event, DocumentStartEvent):
                documents += 1
                if documents > 1:
                    self.problem(event, (), "a second document; one file is one study")
                    return
            elif isinstance(event, (ScalarEvent, MappingStartEvent, SequenceStartEvent, AliasEvent)):
                self.tree = self.value(event, events, ())
        if documents == 0 or self.tree is None:
            empty = Problem(Mark(self.source, 1, 1), (), "the file is empty; see `alignflow recipes`")
            self.problems.append(empty)

    def value(self, event: Any, events: Iterator[Any], path: Path) -> Tree:
        if len(path) > MAX_DEPTH:
            too_deep = Problem(self.mark(event), (), f"nested more than {MAX_DEPTH} deep")
            raise SpecError([*self.problems, too_deep])
        before = self.nodes
        self.nodes += 1
        self.positions[path, "value"] = self.mark(event)
        if isinstance(event, AliasEvent):
            return self.alias(event, path)
        if event.tag is not None:
            self.problem(event, path, f"the tag `{event.tag}`; tags are not part of the language")
        result: Tree
        if isinstance(event, ScalarEvent):
            result = self.scalar(event, path)
        elif isinstance(event, SequenceStartEvent):
            result = []
            for item in events:
                if isinstance(item, SequenceEndEvent):
                    break
                result.append(self.value(item, events, (*path, len(result))))
        else:
            result = self.mapping(events, path)
        if event.anchor:
            self.anchors[event.anchor] = (result, self.nodes - before)
        return result

    def mapping(self, events: Iterator[Any], path: Path) -> Tree:
        result: dict[str, Tree] = {}
        for event in events:
            if isinstance(event, MappingEndEvent):
                break
            if not isinstance(event, ScalarEvent):
                self.problem(event, path, "a key is one word")
                self.value(event, events, path)
                self.value(next(events), events, path)
                continue
            key = event.value
            here = (*path, key)
            if key in result:
                first = self.positions[here, "key"]
                self.problem(event, here, f"the key `{key}` again; it stands at line {first.line} already")
            elif key == "<<" and not event.style:
                self.problem(
                    event, path, "`<<` merges in YAML 1.1 only; write the fields out, or inherit by `extends:`"
                )
            else:
                self.positions[here, "key"] = self.mark(event)
            result[key] = self.value(next(events), events, here)
        return result

    def alias(self, event: Any, path: Path) -> Tree:
        if event.anchor not in self.anchors:
            self.problem(event, path, f"the alias `*{event.anchor}` has no anchor before it")
            return None
        value, size = self.anchors[event.anchor]
        self.nodes += size
        if self.nodes > MAX_NODES:
            message = f"aliases expand this file to more than {MAX_NODES:,} values"
            raise SpecError([*self.problems, Problem(self.mark(event), path, message)])
        return value

    def scalar(self, event: ScalarEvent, path: Path) -> Tree:
        text = event.value
        if event.style:  # quoted or block: text
            return text
        if text in _CONSTANTS:
            return _CONSTANTS[text]
        if _INTEGER.fullmatch(text) and len(text) <= 20:
            return int(text, 8 if text[:2] == "0o" else 16 if text[:2] == "0x" else 10)
        if _FLOAT.fullmatch(text):
            return float(text)
        if _NOT_FINITE.fullmatch(text):
            self.problem(event, path, f"`{text}` is not a finite number")
        return text
