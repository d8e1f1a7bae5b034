"""The studies that come with AlignFlow: listing them, and copying one to begin from."""

from __future__ import annotations

import json
from importlib import resources
from pathlib import Path

from specs.problems import UserError, did_you_mean

SCHEMA = "alignflow.schema.json"


def _files() -> dict[str, str]:
    folder = resources.files("specs") / "recipes"
    return {p.name.removesuffix(".yaml"): p.read_text("utf-8") for p in folder.iterdir() if p.name.endswith(".yaml")}


def listed() -> list[tuple[str, str]]:
    """`(name, its first sentence)` of every recipe."""
    return [(name, _first_sentence(text)) for name, text in sorted(_files().items())]


def _first_sentence(text: str) -> str:
    comments = [line.removeprefix("#").strip() for line in text.splitlines() if line.startswith("#")]
    return next(line for line in comments if line and not line.startswith("yaml-language-server"))


def copy(name: str, folder: Path) -> Path:
    """Writes the recipe and the schema into `folder`; never over a file that is there."""
    from specs.schema import schema

    files = _files()
    if name not in files:
        hint = did_you_mean(name, files) or f"; there are {', '.join(sorted(files))}"
        raise UserError(f"there is no recipe `{name}`{hint}")
    path = folder / f"{name}.yaml"
    if path.exists():
        raise UserError(f"{path} is there already; name another folder")
    folder.mkdir(parents=True, exist_ok=True)
    path.write_text(files[name].replace(f"$schema=../{SCHEMA}", f"$schema=./{SCHEMA}"), encoding="utf-8")
    (folder / SCHEMA).write_text(json.dumps(schema(), indent=1) + "\n", encoding="utf-8")
    return path
