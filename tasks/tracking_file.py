"""MLflow's database in a file, made whole or not at all.

MLflow makes one by running its whole history of migrations, some ten seconds long: two processes that do so at once run into
one another, and one that is killed leaves what no later one can use.
"""

from __future__ import annotations

from pathlib import Path

DIALECT = "sqlite:///"


def made(uri: str) -> str:
    """`uri`, behind which there is a database now if it names a file.

    Raises what MLflow or the file system does where none can be made."""
    path = Path(uri.removeprefix(DIALECT))
    if not uri.startswith(DIALECT) or not path.name or path.name == ":memory:" or path.exists():
        return uri
    from filelock import FileLock

    with FileLock(path.with_name(f"{path.name}.lock")):
        if not path.exists():
            _make(path)
    return uri


def _make(path: Path) -> None:
    from mlflow.store.tracking.sqlalchemy_store import SqlAlchemyStore

    aside = path.with_name(f"{path.name}.new")
    aside.unlink(missing_ok=True)  # of one who was killed
    artifacts = path.parent / "mlartifacts"
    SqlAlchemyStore(f"{DIALECT}{aside}", artifacts.as_uri()).engine.dispose()
    aside.replace(path)
