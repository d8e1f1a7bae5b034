"""`alignflow gc`: artifacts that no study's last run refers to, and what killed builds left. What judges said stays."""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterator
from contextlib import AbstractContextManager, nullcontext, suppress
from pathlib import Path

from registry.home import home
from registry.store import RECORD, locked
from specs.plan import fingerprint
from tasks.continuing import completed
from tasks.view import last_payloads


def collect(delete: bool) -> str:
    """Lists (and with `delete` removes) them; says how much they hold. Converted models stay: every study may
    want them again, and they are not results."""
    folder = home()
    kept = _reachable(folder)
    lines, freed = [], 0
    for path in _candidates(folder):
        if path.name in kept and (path / RECORD).exists():
            continue
        with suppress(_BeingBuilt), _locked(folder, path) if delete else nullcontext():
            size = sum(p.stat().st_size for p in path.rglob("*") if p.is_file())
            freed += size
            lines.append(f"{size / 1e6:10.1f} MB  {path.relative_to(folder)}")
            if delete:
                shutil.rmtree(path)
    for link in (folder / "studies").glob("*/*"):
        if delete and link.is_symlink() and not link.exists():
            link.unlink()
    verb = "deleted" if delete else "would go; `alignflow gc --delete` deletes them"
    return "\n".join([*lines, f"{len(lines)} artifacts, {freed / 1e6:.1f} MB {verb}"])


def _candidates(folder: Path) -> Iterator[Path]:
    folders = (p for p in sorted((folder / "store").glob("*/*")) if p.is_dir())
    return (p for p in folders if p.parent.name != "model" or not (p / RECORD).exists())


class _BeingBuilt(Exception):
    """Another process holds the lock on an artifact."""


def _locked(folder: Path, path: Path) -> AbstractContextManager[None]:
    """Holds the lock that whoever builds this artifact holds, or raises `_BeingBuilt`."""

    def waiting() -> None:
        raise _BeingBuilt

    return locked(folder, path.name.removeprefix("."), waiting=waiting)


def _reachable(folder: Path) -> set[str]:
    """The folder names of what studies' last runs refer to, directly or through records of inputs."""
    prints = {
        fingerprint(payload)
        for study in (folder / "studies").glob("*")
        for payload in last_payloads(folder, study.name).values()
    }
    prints |= {
        made["made"] for study in (folder / "studies").glob("*") for made in completed(folder, study.name).values()
    }
    kept: set[str] = set()
    stack = [p[:16] for p in prints]
    while stack:
        name = stack.pop()
        if name in kept:
            continue
        kept.add(name)
        for record in (folder / "store").glob(f"*/{name}/{RECORD}"):
            stack += [i["fingerprint"][:16] for i in json.loads(record.read_bytes())["inputs"]]
    return kept
