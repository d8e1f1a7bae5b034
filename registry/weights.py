"""A folder of weights looked at without loading it: is it safetensors, whole, of the right architecture, with
the tokenizer it needs? Runs at `check`, before torch is imported."""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

MAX_HEADER = 100_000_000
DIGESTED = (".safetensors", ".json", ".jinja", ".model", ".txt")
PICKLED = (".bin", ".pt", ".pth", ".ckpt", ".pkl")


def folder_problem(folder: Path, *, head: str, template: str = "tokenizer", pad_token: str | None = None) -> str | None:
    """What is wrong with a model folder, or None. `head` is how its architecture must end
    (`ForCausalLM`, `ForSequenceClassification`; empty: any)."""
    if not os.path.exists(folder):  # unlike `Path.exists`, also of names that no file can have
        return f"no such folder: {folder}; a hub id also needs `revision:` (its commit hash)"
    if not folder.is_dir():
        return f"{folder} is a file; name the folder that holds `config.json` and the safetensors"
    if not (folder / "config.json").exists():
        return f"{folder} holds no `config.json`"
    if (folder / "adapter_config.json").exists():
        return "it holds an adapter, which would be laid on whatever model its settings name; merge and save the whole"
    config = _settings(folder / "config.json")
    if config is None:
        return _not_settings(folder / "config.json")
    if "auto_map" in config:
        return "the model brings its own Python code (`auto_map`); code from a model folder is never run"
    names = config.get("architectures") or "none"
    architecture = str(names[0] if isinstance(names, list) else names)
    if not architecture.endswith(head):
        return f"its architecture is {architecture}; this takes one that ends in {head}"
    return _weights_problem(folder) or _tokenizer_problem(folder, template, pad_token)


def _settings(path: Path) -> dict[str, Any] | None:
    """The JSON object in a file, or None where it holds none."""
    try:
        found = json.loads(path.read_bytes())
    except (OSError, ValueError, RecursionError):
        return None
    return found if isinstance(found, dict) else None


def _not_settings(path: Path) -> str:
    return f"{path} is not JSON with settings; fetch or save it again"


def _weights_problem(folder: Path) -> str | None:
    files = sorted(folder.glob("*.safetensors"))
    if not files:
        if any(p.suffix in PICKLED for p in folder.iterdir()):
            return "its weights are pickled, and unpickling runs code; save them as safetensors"
        return f"{folder} holds no safetensors"
    index = folder / "model.safetensors.index.json"
    if index.exists():
        shards = (_settings(index) or {}).get("weight_map")
        if not isinstance(shards, dict):
            return _not_settings(index)
        missing = sorted(set(map(str, shards.values())) - {p.name for p in files})
        if missing:
            return f"the shard {missing[0]} that {index.name} names is missing"
    for path in files:
        problem = safetensors_problem(path)
        if problem:
            return f"{path.name}: {problem}; fetch or save it again"
    return None


def safetensors_problem(path: Path) -> str | None:
    """What is wrong with a safetensors file's layout, or None: the header is read, the tensors are not."""
    size = path.stat().st_size
    with path.open("rb") as file:
        length = int.from_bytes(file.read(8), "little")
        if size < 8 or not 0 < length <= min(size - 8, MAX_HEADER):
            return "not a safetensors file (its header does not fit in it)"
        try:
            header = json.loads(file.read(length))
            ends = [int(t["data_offsets"][1]) for name, t in header.items() if name != "__metadata__"]
        except (ValueError, LookupError, TypeError, AttributeError, RecursionError):
            return "not a safetensors file (its header is not readable)"
    expected = 8 + length + max(ends, default=0)
    if size != expected:
        return f"corrupt: {size:,} bytes where its header promises {expected:,}"
    return None


def header(path: Path) -> dict[str, list[int]]:
    """The shapes of the tensors in a safetensors file that is whole, by name."""
    with path.open("rb") as file:
        length = int.from_bytes(file.read(8), "little")
        found = json.loads(file.read(length))
    return {name: list(map(int, tensor["shape"])) for name, tensor in found.items() if name != "__metadata__"}


def _tokenizer_problem(folder: Path, template: str, pad_token: str | None) -> str | None:
    settings_file = folder / "tokenizer_config.json"
    if not settings_file.exists():
        return f"{folder} holds no tokenizer (`tokenizer_config.json`)"
    settings = _settings(settings_file)
    if settings is None:
        return _not_settings(settings_file)
    if template == "tokenizer" and not _has_chat_template(folder, settings):
        return "its tokenizer has no chat template; add `template: hh` or `template: text`"
    if settings.get("pad_token") is None and pad_token is None:
        return "its tokenizer has no padding token; add `pad_token:` with one of its tokens, not the end token"
    return None


def _has_chat_template(folder: Path, settings: dict[str, Any]) -> bool:
    return bool(settings.get("chat_template")) or (folder / "chat_template.jinja").exists()


def folder_digest(folder: Path, cache: Path | None) -> str:
    """One sha256 over the names and contents of the files that make up the model. Contents of large files
    are remembered in `cache` by path, size and time of change."""
    whole = hashlib.sha256()
    for path in _files(folder):
        whole.update(f"{path.relative_to(folder)}\0{_file_digest(path, cache)}\n".encode())
    return whole.hexdigest()


def _files(folder: Path) -> Iterator[Path]:
    return (p for p in sorted(folder.rglob("*")) if p.is_file() and p.suffix in DIGESTED)


def _file_digest(path: Path, cache: Path | None) -> str:
    status = path.stat()
    key = hashlib.sha256(f"{path.resolve()}\0{status.st_size}\0{status.st_mtime_ns}".encode()).hexdigest()
    remembered = cache / key if cache and status.st_size > 4_000_000 else None
    if remembered and remembered.exists():
        return remembered.read_text(encoding="ascii")
    with path.open("rb") as file:
        found = hashlib.file_digest(file, "sha256").hexdigest()
    if remembered and cache and os.access(cache.parent, os.W_OK):
        cache.mkdir(exist_ok=True)
        written = remembered.with_suffix(f".{os.getpid()}")
        written.write_text(found, encoding="ascii")
        written.replace(remembered)  # whole, whoever else writes it
    return found
