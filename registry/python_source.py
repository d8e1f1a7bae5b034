"""A Python reward's source: found without running it, and identified with everything beside the spec that it imports.

A reward may change when a helper module changes, so what the module imports from the spec's folder is part of its
digest, transitively. Installed packages are not (their versions are recorded with each artifact), nor are files
that the code opens while it runs.
"""

from __future__ import annotations

import ast
import hashlib
import importlib.util
import sys
from collections.abc import Iterator
from contextlib import suppress
from importlib.machinery import ModuleSpec, PathFinder
from pathlib import Path

from specs.plan import Fact
from specs.problems import did_you_mean
from specs.rewards import PythonReward


def python_fact(reward: PythonReward, folder: Path) -> Fact:
    """The identity of a Python reward: the digest of its source. A module that lies in `folder`, beside the spec, wins,
    and must not be called as another one is."""
    module, function = reward.target.split(":")
    top = module.split(".")[0]
    found = _beside(module, folder)
    if found and (other := _elsewhere(top, folder)):
        return Fact(problem=f"`{top}` is also the name of a module of {other}; call yours something else")
    if found is None:
        try:
            found = importlib.util.find_spec(module)
        except (ImportError, ValueError):
            found = None
        except (Exception, SystemExit) as error:  # to find `a.b` is to run the package `a`
            text = " ".join(f"{type(error).__name__}: {error}".split())
            return Fact(problem=f"`{module}` cannot be imported: {text}")
    if found is None or found.origin is None or not found.origin.endswith(".py"):
        return Fact(problem=f"no module `{module}` beside the spec ({folder}) or among the installed packages")
    try:
        tree = _parsed(Path(found.origin))
        beside = _sources(module, folder)
    except SyntaxError as error:
        return Fact(problem=f"{error.filename}:{error.lineno}: {error.msg}")
    except ValueError as error:  # a null byte
        return Fact(problem=f"{found.origin}: {error}")
    for name in beside:
        if other := _elsewhere(name.split(".")[0], folder):
            return Fact(
                problem=f"`{name}`, which it imports, is also the name of a module of {other}; call yours something else"
            )
    missing = next((name for name in _needed(tree) if not _importable(name, folder)), None)
    if missing:
        return Fact(
            problem=f"`{module}` imports `{missing}`, which is neither beside the spec ({folder}) nor installed"
        )
    names = set(_bound(tree.body))
    if function not in names and "*" not in names:
        return Fact(problem=f"`{module}` defines no function `{function}`{did_you_mean(function, names)}")
    sources = beside or {module: Path(found.origin)}
    whole = hashlib.sha256()
    for name in sorted(sources):
        whole.update(f"{name}\0{hashlib.sha256(sources[name].read_bytes()).hexdigest()}\n".encode())
    return Fact({"sha256": whole.hexdigest()})


def _parsed(path: Path) -> ast.Module:
    source = path.read_bytes()
    for _ in range(100):
        # CPython 3.11 keeps one count for all threads, and miscounts where two parse at once (python/cpython#106905).
        with suppress(SystemError):
            return ast.parse(source, str(path))
    return ast.parse(source, str(path))


def _beside(module: str, folder: Path) -> ModuleSpec | None:
    """Where a module's file lies under `folder`. Nothing is run or remembered."""
    path = [str(folder)]
    found = None
    parts = module.split(".")
    PathFinder.invalidate_caches()
    for i in range(len(parts)):
        found = PathFinder.find_spec(".".join(parts[: i + 1]), path)
        if found is None:
            return None
        path = list(found.submodule_search_locations or [])
    return found if found and found.origin else None  # a folder without `__init__.py` may be anything


def _elsewhere(top: str, folder: Path) -> str | None:
    """Whose module of this name a worker may have loaded before it looks in `folder`."""
    if top in sys.stdlib_module_names:
        return "Python itself"
    path = [p for p in sys.path if Path(p or ".").resolve() != folder.resolve()]
    found = PathFinder.find_spec(top, path) if path else None
    return "an installed package" if found and found.origin else None


def _sources(module: str, folder: Path) -> dict[str, Path]:
    """The files of `module` and of all it imports from `folder`, by module name."""
    sources: dict[str, Path] = {}
    waiting = [module]
    while waiting:
        name = waiting.pop()
        parent = name.rpartition(".")[0]
        found = _beside(name, folder)
        if name in sources or found is None:
            continue
        waiting += [parent] if parent else []  # importing `a.b` runs `a`
        if found.origin and found.origin.endswith(".py"):
            sources[name] = Path(found.origin)
            package = name if found.submodule_search_locations else parent
            waiting += _imports(sources[name], package)
    return sources


def _needed(tree: ast.Module) -> Iterator[str]:
    """The packages that a module imports come what may: outside of functions, conditions and `try`."""
    for node in tree.body:
        if isinstance(node, ast.Import):
            yield from (alias.name.split(".")[0] for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and node.level == 0 and node.module:
            yield node.module.split(".")[0]


def _importable(package: str, folder: Path) -> bool:
    if package in sys.modules or PathFinder.find_spec(package, [str(folder)]):
        return True
    try:
        return importlib.util.find_spec(package) is not None
    except (ImportError, ValueError):
        return False


def _bound(body: list[ast.stmt]) -> Iterator[str]:
    """The names that statements bind, also inside conditions and `try`; `*` where an import binds unknown ones."""
    for node in body:
        if isinstance(node, (ast.FunctionDef, ast.ClassDef)):
            yield node.name
        elif isinstance(node, (ast.Import, ast.ImportFrom)):
            yield from (alias.asname or alias.name for alias in node.names)
        elif isinstance(node, (ast.Assign, ast.AnnAssign)):
            targets = node.targets if isinstance(node, ast.Assign) else [node.target]
            yield from (n.id for target in targets for n in ast.walk(target) if isinstance(n, ast.Name))
        for field in ("body", "orelse", "finalbody", "handlers"):
            inner = [] if isinstance(node, (ast.FunctionDef, ast.ClassDef)) else getattr(node, field, [])
            for part in inner:
                yield from _bound(part.body if isinstance(part, ast.ExceptHandler) else [part])


def _imports(path: Path, package: str) -> Iterator[str]:
    """The names of the modules that a file may import, absolute."""
    for node in ast.walk(_parsed(path)):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            above = package.split(".")[: len(package.split(".")) - node.level + 1] if node.level else []
            base = ".".join([*above, *([node.module] if node.module else [])])
            yield base
            yield from (f"{base}.{alias.name}" for alias in node.names)
