"""docker-compose.yml as Compose reads it: one document, its anchors resolved, its variables filled in from `.env`.

Of the ways to write a variable only those are taken that have no default: a forgotten secret is to be an error.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from places import REPOSITORY
from ruamel.yaml import YAML

FILE = REPOSITORY / "docker-compose.yml"
_VARIABLE = re.compile(
    r"\$(?:(?P<literal>\$)|\{(?P<name>[A-Z][A-Z0-9_]*):\?(?P<message>[^}]+)\}|(?P<other>.?))", re.DOTALL
)


def read(variables: Mapping[str, str]) -> dict[str, Any]:
    """Raises `ValueError` with the message of a variable that is missing or empty, as Compose does."""
    return _filled(_document(), variables)


def asked_for() -> set[str]:
    """The names of the variables that the file asks for."""
    return {match["name"] for match in _VARIABLE.finditer(FILE.read_text()) if match["name"]}


def example() -> dict[str, str]:
    """`.env.example`: names, and the values that it gives."""
    lines = (REPOSITORY / ".env.example").read_text().splitlines()
    pairs = (tuple(line.split("=", 1)) for line in lines if line and not line.startswith("#"))
    return dict(pairs)


def _document() -> Any:
    return YAML(typ="safe").load(FILE.read_text())


def _filled(node: Any, variables: Mapping[str, str]) -> Any:
    if isinstance(node, dict):
        return {key: _filled(value, variables) for key, value in node.items()}
    if isinstance(node, list):
        return [_filled(value, variables) for value in node]
    return _VARIABLE.sub(lambda match: _value(match, variables), node) if isinstance(node, str) else node


def _value(match: re.Match[str], variables: Mapping[str, str]) -> str:
    if match["literal"]:
        return "$"
    if match["name"] is None:
        raise ValueError(f"a variable is written as `${{NAME:?message}}`, not as `{match[0]}...`")
    if not variables.get(match["name"]):
        raise ValueError(f"{match['name']}: {match['message']}")
    return variables[match["name"]]


def image_environment(dockerfile: Path = REPOSITORY / "Dockerfile") -> dict[str, str]:
    """What the image's `ENV` sets."""
    text = dockerfile.read_text().replace("\\\n", " ")
    return dict(
        pair.split("=", 1) for line in text.splitlines() if line.startswith("ENV ") for pair in line.split()[1:]
    )
