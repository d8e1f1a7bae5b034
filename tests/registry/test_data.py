"""Sources to rows: files in three encodings, the catalogue, a hub data set in a hand-made cache.

Counts on real HH-RLHF data are checked where that data lies beside the repository.
"""

from __future__ import annotations

import gzip
import hashlib
import json
import os
import shutil
from pathlib import Path
from typing import Any

import pytest

from registry.data import CATALOGUE, fact, read
from registry.rows import Pair
from specs.data import Data
from specs.problems import UnfitError, UserError

ROWS: list[dict[str, Any]] = [
    {"prompt": f"Question {i}?", "chosen": f"Yes, {i}.", "rejected": "No é\u2028."} for i in range(40)
]
REVISION = "0123456789abcdef0123456789abcdef01234567"


def write(path: Path, rows: list[dict[str, Any]]) -> Path:
    text = "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows)
    if path.suffix == ".gz":
        path.write_bytes(gzip.compress(text.encode()))
    elif path.suffix == ".parquet":
        import pyarrow
        import pyarrow.parquet

        pyarrow.parquet.write_table(pyarrow.Table.from_pylist(rows), path)
    else:
        path.write_text(text, encoding="utf-8")
    return path


def pairs(path: Path, **fields: Any) -> Data:
    return Data(source=str(path), **{"format": "preference", **fields})


def problem(data: Data, *, offline: bool = False) -> str:
    return fact(data, offline).problem or ""


def test_the_three_encodings_of_one_table_give_the_same_rows(tmp_path: Path) -> None:
    names = ("a.jsonl", "a.jsonl.gz", "a.parquet")
    plain, zipped, table = (read(pairs(write(tmp_path / name, ROWS))) for name in names)
    assert plain == zipped == table
    assert plain.rows[3] == Pair(({"role": "user", "content": "Question 3?"},), "Yes, 3.", "No é\u2028.")
    assert plain.read == len(plain.rows) == 40


def test_messages_in_a_parquet_table_are_read(tmp_path: Path) -> None:
    question = {"role": "user", "content": "Why?"}
    answers = [{"role": "assistant", "content": text} for text in ("So.", "No.")]
    row = {"chosen": [question, answers[0]], "rejected": [question, answers[1]], "score": 0.5}
    rows = read(pairs(write(tmp_path / "a.parquet", [row])))
    assert rows.rows == (Pair((question,), "So.", "No."),)


@pytest.mark.parametrize("name", ["a.jsonl", "a.parquet"])
def test_a_missing_column_is_reported_with_every_column_there_is(tmp_path: Path, name: str) -> None:
    path = write(tmp_path / name, [{"prompt": "a", "good": "b", "rejected": "c", "n": 1}])
    with pytest.raises(UserError) as error:
        read(pairs(path), where="data.pairs")
    assert str(error.value) == (
        "data.pairs: no row has the column `chosen`; the columns are `prompt`, `good`, `rejected`, "
        "`n`; name the right one with `columns: {chosen: <name>}`"
    )
    assert read(pairs(path, columns={"chosen": "good"})).rows[0].chosen == "b"


def test_a_bad_line_is_a_dropped_row_under_its_line_number(tmp_path: Path) -> None:
    path = tmp_path / "a.jsonl"
    good = json.dumps(ROWS[0]).encode()
    deep = b"[" * 100_000
    path.write_bytes(b"\xef\xbb\xbf" + b"\n".join([good, b"", b"{", b"\xff", deep, good, b""]))
    rows = read(pairs(path, max_dropped="60%"))
    assert (len(rows.rows), rows.read) == (2, 5)
    assert rows.dropped == {"not JSON": 2, "not UTF-8": 1}
    assert rows.first == {"not JSON": 3, "not UTF-8": 4}


def test_the_limit_on_rows_counts_what_is_read_not_what_is_kept(tmp_path: Path) -> None:
    rows = [{"prompt": ""}, {"prompt": "a"}, {"prompt": "b"}]
    limited = read(pairs(write(tmp_path / "a.jsonl", rows), format="prompt", rows=2, max_dropped="50%"))
    assert [row.messages[0]["content"] for row in limited.rows] == ["a"]
    assert limited.read == 2


def test_a_part_is_taken_from_the_rows_that_can_be_used(tmp_path: Path) -> None:
    path = write(tmp_path / "a.jsonl", [*ROWS, {"prompt": "a"}])
    data = pairs(path, split={"train": 30, "eval": 10}, max_dropped="5%")
    train, evaluation = read(data, "train"), read(data, "eval")
    assert (len(train.rows), len(evaluation.rows)) == (30, 10)
    assert sorted(r.chosen for r in train.rows + evaluation.rows) == sorted(r["chosen"] for r in ROWS)
    assert train.dropped == evaluation.dropped == {"`chosen` is missing": 1}
    with pytest.raises(UserError, match=r"^data\.p: `split` asks for 41 rows"):
        read(data.model_copy(update={"split": {"train": 31, "eval": 10}}), "eval", "data.p")


def test_the_catalogue_holds_distinct_prompts_for_training_and_evaluation() -> None:
    rows = {name: read(Data(source=name, format="prompt", max_dropped="0%")).rows for name in CATALOGUE}
    sizes = {"quickstart-train": 64, "quickstart-eval": 48, "stories-train": 288, "stories-eval": 240}
    assert {name: len(some) for name, some in rows.items()} == sizes
    assert len({row.id for some in rows.values() for row in some}) == sum(sizes.values())


def test_the_variable_in_a_source_is_read_where_the_source_is_used(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write(tmp_path / "a.jsonl", ROWS)
    data = Data(source="${env:DATA_FOLDER}/a.jsonl", format="preference")
    monkeypatch.setenv("DATA_FOLDER", str(tmp_path))
    assert len(read(data).rows) == 40
    monkeypatch.delenv("DATA_FOLDER")
    assert problem(data) == "the environment variable `DATA_FOLDER` is not set"


def test_a_file_is_identified_by_its_digest_and_not_by_its_path(tmp_path: Path) -> None:
    path = write(tmp_path / "a.jsonl", ROWS)
    found = fact(pairs(path), offline=True)
    assert found.identity == {"sha256": hashlib.sha256(path.read_bytes()).hexdigest()}
    assert (found.drops, found.problem) == (("source",), None)
    assert fact(pairs(Path(shutil.copy(path, tmp_path / "b.jsonl"))), offline=True) == found
    assert fact(Data(source="quickstart-eval", format="prompt"), offline=True).drops == ("source",)


def test_a_source_that_cannot_be_had_is_one_line_with_a_remedy(tmp_path: Path) -> None:
    write(tmp_path / "pairs.jsonl", ROWS)
    (tmp_path / "empty.jsonl").touch()
    os.mkfifo(tmp_path / "pipe.jsonl")
    for source, line in {
        f"{tmp_path}/pair.jsonl": (f"there is no file `{tmp_path}/pair.jsonl`; did you mean `pairs.jsonl`?"),
        f"{tmp_path}/none/a.jsonl": f"there is no file `{tmp_path}/none/a.jsonl`",
        f"{tmp_path}/a.csv": (f"`{tmp_path}/a.csv` has an unknown suffix; there are .jsonl, .jsonl.gz, .parquet"),
        str(tmp_path): f"`{tmp_path}` is a folder; name a file in it (.jsonl, .jsonl.gz, .parquet)",
        f"{tmp_path}/empty.jsonl": f"`{tmp_path}/empty.jsonl` is empty",
        f"{tmp_path}/pipe.jsonl": f"`{tmp_path}/pipe.jsonl` is not a regular file",
        f"/{'x' * 300}.jsonl": f"`/{'x' * 300}.jsonl` cannot be read: File name too long",
        "quickstart-trian": (
            "`quickstart-trian` is not in the data catalogue; did you mean `quickstart-train`? (a file has a suffix)"
        ),
    }.items():
        data = Data(source=source, format="preference")
        assert problem(data) == line
        with pytest.raises(UserError) as error:
            read(data, where="data.pairs")
        assert str(error.value) == f"data.pairs: {line}"


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("a.jsonl.gz", b"not gzip"),
        ("a.jsonl.gz", gzip.compress(b"{}\n" * 9999)[:-12]),
        ("a.jsonl.gz", gzip.compress(os.urandom(99))[:20] + b"\0" * 99),
        ("a.parquet", b"not parquet"),
    ],
    ids=["not gzip", "cut off", "damaged", "not parquet"],
)
def test_a_file_that_cannot_be_unpacked_is_one_line(tmp_path: Path, name: str, content: bytes) -> None:
    (tmp_path / name).write_bytes(content)
    with pytest.raises(UserError, match=r"^data\.pairs: `.*` cannot be read.*: .+$"):
        read(pairs(tmp_path / name), where="data.pairs")


@pytest.mark.parametrize("content", [b"\n\n", gzip.compress(b"")], ids=["blank lines", "gzip of nothing"])
def test_a_file_without_rows_is_an_error(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / ("a.jsonl" if content == b"\n\n" else "a.jsonl.gz")
    path.write_bytes(content)
    with pytest.raises(UserError, match="there are no rows"):
        read(pairs(path))


@pytest.fixture
def hub_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A data set `some-team/answers` as the hub client leaves it, with the hub out of reach."""
    datasets = pytest.importorskip("datasets")
    cache = tmp_path / "cache"
    write(tmp_path / "train.jsonl", ROWS)
    builder = datasets.load_dataset_builder(
        "json",
        data_files={"train": str(tmp_path / "train.jsonl")},
        cache_dir=str(tmp_path / "made"),
    )
    builder.download_and_prepare()
    kept = cache / "some-team___answers" / "default" / "0.0.0" / REVISION
    shutil.copytree(builder.cache_dir, kept)
    told = json.loads((kept / "dataset_info.json").read_text())
    told |= {"config_name": "default", "dataset_name": "answers"}
    (kept / "dataset_info.json").write_text(json.dumps(told))
    (arrow,) = kept.glob("*.arrow")
    arrow.rename(kept / "answers-train.arrow")
    monkeypatch.setenv("HF_DATASETS_CACHE", str(cache))
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", cache)
    monkeypatch.setattr(datasets.config, "HF_HUB_OFFLINE", True)
    monkeypatch.chdir(tmp_path)
    return cache


def hub(revision: str = REVISION, **fields: Any) -> Data:
    return Data(source="some-team/answers", revision=revision, format="preference", **fields)


def test_a_hub_data_set_is_read_from_the_cache_at_its_revision(hub_cache: Path) -> None:
    assert fact(hub(), offline=True) == fact(hub(), offline=False)
    assert fact(hub(), offline=True).drops == ()
    rows = read(hub(rows=7))
    assert rows.rows == read(pairs(Path("train.jsonl"), rows=7)).rows


def test_a_folder_of_the_same_name_is_not_taken_for_a_hub_data_set(hub_cache: Path) -> None:
    Path("some-team/answers").mkdir(parents=True)
    write(Path("some-team/answers/train.jsonl"), ROWS[:1])
    assert len(read(hub()).rows) == 40


def test_another_revision_in_the_cache_is_not_taken_for_the_pinned_one(hub_cache: Path) -> None:
    other = "f" * 40
    assert problem(hub(other), offline=True) == (
        "some-team/answers at ffffffffffff is not in the hub cache; run once without --offline"
    )
    with pytest.raises(UnfitError, match=r"^data\.p: .* the cache holds another revision of it$"):
        read(hub(other), where="data.p")


def test_a_hub_that_is_out_of_reach_unfits_and_a_wrong_split_is_the_persons(
    hub_cache: Path,
) -> None:
    with pytest.raises(UserError, match=r"^data: the data set .* cannot be had: .*\"?vald"):
        read(hub(hub_split="vald"))
    shutil.rmtree(hub_cache)
    with pytest.raises(UnfitError, match="is out of reach and not cached"):
        read(hub())


REAL = Path(__file__).parents[3] / "shared" / "data" / "hh-rlhf"
APART = "chosen and rejected do not share the dialogue before the last answer"
TWICE = "two turns of one speaker in a row"
NO_ANSWER = "empty answer"


@pytest.mark.skipif(not REAL.is_dir(), reason="real HH-RLHF data is not beside the repository")
@pytest.mark.parametrize(
    ("name", "read_rows", "dropped"),
    [
        ("harmless.train", 1512, {APART: 3, TWICE: 3, NO_ANSWER: 4}),
        ("harmless.test", 500, {APART: 1, TWICE: 1}),
        ("helpful.train", 1552, {APART: 7, TWICE: 3, NO_ANSWER: 2, "empty turn in the prompt": 1}),
        ("helpful.test", 500, {APART: 1, TWICE: 1, NO_ANSWER: 1}),
    ],
)
def test_real_dialogues_are_read_within_the_default_tolerance(
    name: str, read_rows: int, dropped: dict[str, int]
) -> None:
    rows = read(Data(source=str(REAL / f"{name}.jsonl.gz"), format="hh_rlhf"))
    assert (rows.read, rows.dropped) == (read_rows, dropped)
    assert len(rows.rows) == read_rows - sum(dropped.values())
    for pair in rows.rows:
        assert [m["role"] for m in pair.prompt[-1:]] == ["user"]
        assert pair.chosen and pair.rejected
