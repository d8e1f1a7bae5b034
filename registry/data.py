"""Where rows come from: a file, a catalogue name or a hub id, to rows in normal form.

`fact` looks at a source without reading its rows: what identifies it, and why it cannot be had.
`read` gives the rows, or one line for the person. A file's identity is its digest. A hub data set's
is its pinned revision, so rows that the hub client found under any other revision are refused.
"""

from __future__ import annotations

import hashlib
import json
import os
import zlib
from collections.abc import Iterator
from itertools import islice
from pathlib import Path
from typing import IO, Any, cast

from registry.dialogues import FORMS
from registry.rows import Rows, Unusable, check_dropped, collect
from registry.rows import part as part_of
from specs.base import environment_names, expand_environment
from specs.data import DATA_SUFFIXES, Data
from specs.plan import Fact
from specs.problems import UnfitError, UserError, did_you_mean, listed
from specs.sources import origin

CATALOGUE = {
    "quickstart-train": "quickstart_train.jsonl",
    "quickstart-eval": "quickstart_eval.jsonl",
    "stories-train": "stories_train.jsonl",
    "stories-eval": "stories_eval.jsonl",
}
"""Packaged data sets, and their files in `registry/prompts`."""

NumberedRows = Iterator[tuple[int, Any]]


def fact(data: Data, offline: bool) -> Fact:
    """What identifies the source beside its spec, and why it cannot be had if so."""
    if data.revision is not None:
        return Fact(problem=_hub_problem(data.source, data.revision, offline))
    try:
        path = _file(data)
        with path.open("rb") as file:
            digest = hashlib.file_digest(file, "sha256").hexdigest()
    except UserError as error:
        return Fact(drops=("source",), problem=str(error))
    except OSError as error:
        return Fact(drops=("source",), problem=_unreadable(data.source, error))
    return Fact({"sha256": digest}, ("source",))


def read(data: Data, part: str | None = None, where: str = "data") -> Rows[Any]:
    """The rows of `data`, or of one part of its split; `dropped` speaks of the whole source.

    Raises `UserError`, one line that begins with `where` (`data.pairs`), if the source cannot be
    read, more than `max_dropped` of it is lost or the split asks for too much; `UnfitError` if a
    hub is out of reach.
    """
    try:
        raw = _raw(data)
        rows = collect(islice(raw, data.rows), FORMS[data.format], data.columns)
    except (UserError, UnfitError) as error:
        raise type(error)(f"{where}: {error}") from error
    except (OSError, EOFError, zlib.error) as error:
        raise UserError(f"{where}: {_unreadable(data.source, error)}") from error
    check_dropped(rows, data.max_dropped, where)
    if part is None:
        return rows
    assert data.split is not None, "the loader has checked that the data set has parts"
    kept = part_of(rows.rows, data.split, part, where)
    return Rows(kept, rows.read, rows.dropped, rows.first, rows.columns)


def _raw(data: Data) -> NumberedRows:
    if data.revision is not None:
        return _hub_rows(data, data.revision)
    path = _file(data)
    if path.name.endswith(".parquet"):
        return _parquet_rows(path, data)
    return _json_rows(path)


def _expanded(source: str) -> str:
    return expand_environment(source, os.environ)


def _file(data: Data) -> Path:
    """The local file of a catalogue name or a path, as far as one can be had."""
    if origin(data.source, data.revision) == "catalogue":
        if data.source not in CATALOGUE:
            hint = did_you_mean(data.source, CATALOGUE) or f"; it has {', '.join(CATALOGUE)}"
            raise UserError(f"`{data.source}` is not in the data catalogue{hint} (a file has a suffix)")
        return Path(__file__).parent / "prompts" / CATALOGUE[data.source]
    path = Path(os.path.expanduser(_expanded(data.source)))
    suffixes = ", ".join(DATA_SUFFIXES)
    if path.is_dir():
        raise UserError(f"`{data.source}` is a folder; name a file in it ({suffixes})")
    if not path.name.endswith(DATA_SUFFIXES):
        raise UserError(f"`{data.source}` has an unknown suffix; there are {suffixes}")
    if not path.exists():
        beside = [p.name for p in path.parent.iterdir()] if path.parent.is_dir() else []
        names = listed(environment_names(data.source))
        hint = did_you_mean(path.name, beside) or (f"; look at what {names} holds" if names else "")
        raise UserError(f"there is no file `{data.source}`{hint}")
    # A pipe would be emptied by the digest, and nothing left for the reader.
    if not path.is_file():
        raise UserError(f"`{data.source}` is not a regular file")
    if path.stat().st_size == 0:
        raise UserError(f"`{data.source}` is empty")
    return path


def _unreadable(source: str, error: Exception) -> str:
    why = error.strerror if isinstance(error, OSError) and error.strerror else str(error)
    return f"`{source}` cannot be read: {why}"


def _json_rows(path: Path) -> NumberedRows:
    with _opened(path) as file:
        for number, line in enumerate(file, 1):
            if number == 1:
                line = line.removeprefix(b"\xef\xbb\xbf")  # some editors begin UTF-8 so
            if line.strip():
                yield number, _json_row(line)


def _opened(path: Path) -> IO[bytes]:
    if path.name.endswith(".gz"):
        import gzip

        return cast(IO[bytes], gzip.open(path))
    return path.open("rb")


def _json_row(line: bytes) -> Any:
    try:
        return json.loads(line.decode())
    except UnicodeDecodeError:
        return Unusable("not UTF-8")
    except (ValueError, RecursionError):
        return Unusable("not JSON")


def _parquet_rows(path: Path, data: Data) -> NumberedRows:
    import pyarrow
    import pyarrow.parquet

    form = FORMS[data.format]
    wanted = {data.columns.get(n, n) for n in (*form.needs, *form.may_have)}
    try:
        with pyarrow.parquet.ParquetFile(path) as file:
            have = file.schema_arrow.names
            # What else the table holds may be large. All of it only where a message must list it.
            complete = all(data.columns.get(n, n) in have for n in (*form.needs, *data.columns))
            columns = [name for name in have if name in wanted] if complete else None
            batches = file.iter_batches(batch_size=1024, columns=columns)
            yield from enumerate((row for batch in batches for row in batch.to_pylist()), 1)
    except pyarrow.ArrowException as error:
        first_line = str(error).splitlines()[0]
        raise UserError(f"`{data.source}` cannot be read as parquet: {first_line}") from error


def _hub_rows(data: Data, revision: str) -> NumberedRows:
    import datasets
    import httpx

    source = _expanded(data.source)
    what = f"the data set `{data.source}` at {revision[:12]}"
    try:
        # `hf://` so that a folder which happens to bear the name is not taken for it.
        builder = datasets.load_dataset_builder(f"hf://datasets/{source}", data.subset, revision=revision)
        # Without a hub the client takes whatever revision it has cached, and only logs that.
        if builder.hash != revision:
            raise UnfitError(f"{what} cannot be had, and the cache holds another revision of it")
        builder.download_and_prepare()
        table = builder.as_dataset(split=data.hub_split)
    except (ConnectionError, TimeoutError, httpx.TransportError) as error:
        raise UnfitError(f"{what} is out of reach and not cached ({_first_line(error)})") from error
    except (ValueError, datasets.exceptions.DatasetsError, FileNotFoundError) as error:
        raise UserError(f"{what} cannot be had: {_first_line(error)}") from error
    return iter(enumerate(table, 1))


def _first_line(error: Exception) -> str:
    return next(iter(str(error).splitlines()), type(error).__name__)


def _hub_problem(source: str, revision: str, offline: bool) -> str | None:
    if not offline and os.environ.get("HF_HUB_OFFLINE") != "1":
        return None
    home = Path(os.environ.get("HF_HOME", "~/.cache/huggingface"))
    cache = Path(os.environ.get("HF_DATASETS_CACHE", home / "datasets")).expanduser()
    # <namespace>___<name>/<subset>/<version>/<revision>: the commit's hash alone is telling.
    if any(cache.glob(f"*/*/*/{revision}")):
        return None
    return f"{source} at {revision[:12]} is not in the hub cache; run once without --offline"
