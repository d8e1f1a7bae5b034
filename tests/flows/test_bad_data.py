"""Data that cannot be used: told by `check` at the field that names them, or by the stage that reads them."""

from __future__ import annotations

import gzip
import json
from collections.abc import Callable
from pathlib import Path

import pyarrow
import pyarrow.parquet
import pytest
import tiny
from command import alignflow, stored, told

STUDY = """\
version: 1
name: small
data:
  rows: {source: ./rows.jsonl, format: prompt}
models:
  base: {source: ./model, precision: fp32}
stages:
  rolls: {do: sample, from: base, prompts: rows, max_new_tokens: 4}
"""
ROWS = [{"prompt": f"Tell me of number {i}"} for i in range(100)]


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny.language_model(tmp_path_factory.mktemp("m") / "model")


@pytest.fixture
def folder(model: Path, tmp_path: Path, home: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    (tmp_path / "model").symlink_to(model)
    monkeypatch.chdir(tmp_path)
    return tmp_path


def with_line(number: int, line: bytes) -> bytes:
    """The hundred rows with one line, counted from 1, in place of another."""
    lines = [json.dumps(row).encode() for row in ROWS]
    lines[number - 1] = line
    return b"\n".join(lines) + b"\n"


def parquet(path: Path) -> bytes:
    pyarrow.parquet.write_table(pyarrow.table({"prompt": [r["prompt"] for r in ROWS]}), path)
    return path.read_bytes()


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("rows.jsonl", lambda p: None, "there is no file `{path}`"),
        ("rows.jsonl", lambda p: b"", "`{path}` is empty"),
        ("rows.jsonl", lambda p: b"\n\n", "there are no rows; the source is empty"),
        (
            "rows.jsonl",
            lambda p: with_line(50, b'{"prompt": "cut o').replace(b"number 7", b"").replace(b'"Tell me of "', b"3"),
            "2 of 100 rows (2 %) cannot be used, more than max_dropped 1%: `prompt` is neither text nor messages: 1 "
            "(row 8), not JSON: 1 (row 50); mend the file or raise max_dropped",
        ),
        (
            "rows.jsonl",
            lambda p: b'{"prompt": 3}\n' * 4 + b"{\n",
            "none of 5 rows can be used: `prompt` is neither text nor messages: 4 (first: row 1), not JSON: 1 (row 5); "
            "mend the file",
        ),
        (
            "rows.jsonl",
            lambda p: b'{"question": "a", "answer": "b"}\n',
            "no row has the column `prompt`; the columns are `question`, `answer`; name the right one with "
            "`columns: {{prompt: <name>}}`",
        ),
        (
            "rows.jsonl.gz",
            lambda p: gzip.compress(with_line(1, b"{}"))[:-20],
            "`{path}` cannot be read: Compressed file ended before the end-of-stream marker was reached",
        ),
        ("rows.parquet", lambda p: parquet(p)[:200], "`{path}` cannot be read as parquet: Parquet magic bytes not found"),
        ("rows.csv", lambda p: b"prompt\na\n", "`{path}` has an unknown suffix; there are .jsonl, .jsonl.gz, .parquet"),
    ],
    ids=[
        "missing", "empty", "blank lines", "two bad rows of a hundred", "no row left", "missing column", "gzip cut off",
        "parquet cut off", "unknown suffix",
    ],
)  # fmt: skip
def test_data_that_cannot_be_used_are_told_at_the_field_that_names_them(
    folder: Path,
    capsys: pytest.CaptureFixture[str],
    name: str,
    content: Callable[[Path], bytes | None],
    message: str,
) -> None:
    path = folder / name
    made = content(path)
    if made is not None:
        path.write_bytes(made)
    (folder / "s.yaml").write_text(STUDY.replace("rows.jsonl", name))
    for verb in ("check", "run"):
        status, out, (line, count) = told(capsys, verb, "s.yaml")
        assert (status, out, count) == (2, [], "1 error; nothing was run.")
        assert line.startswith(f"s.yaml:4:18  data.rows.source  {message.format(path=path)}")
    assert stored(folder / "home") == []


def test_one_bad_line_of_a_hundred_is_dropped_and_two_parts_of_the_rest_may_be_taken(
    folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """The default of `max_dropped` is 1 %; 99 rows are left for the parts and not one more."""
    (folder / "rows.jsonl").write_bytes(with_line(50, b"{broken"))
    text = STUDY.replace("prompts: rows", "prompts: rows.a")
    for second, status in ((39, 0), (40, 2)):
        split = f"format: prompt, split: {{a: 60, b: {second}}}"
        (folder / "s.yaml").write_text(text.replace("format: prompt", split))
        found, _, err = told(capsys, "check", "s.yaml")
        assert found == status
    assert err[0] == (
        "s.yaml:4:18  data.rows.source  `split` asks for 100 rows (a: 60, b: 40) and 99 can be used; lower it"
    )
    (folder / "s.yaml").write_text(STUDY.replace("format: prompt", "format: prompt, max_dropped: 0.9%"))
    status, _, err = told(capsys, "check", "s.yaml")
    assert status == 2
    assert err[0].endswith("more than max_dropped 0.9%: not JSON: 1 (row 50); mend the file or raise max_dropped")


def test_the_home_of_somebody_unknown_holds_no_file(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (folder / "s.yaml").write_text(STUDY.replace("./rows.jsonl", "~no-such-person/rows.jsonl"))
    status, _, (line, _) = told(capsys, "check", "s.yaml")
    assert (status, line) == (
        2,
        f"s.yaml:4:18  data.rows.source  there is no file `{folder}/~no-such-person/rows.jsonl`",
    )


def test_data_that_no_stage_needs_any_more_are_not_read(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    tiny.write_lines(folder / "rows.jsonl", ROWS)
    tiny.write_lines(folder / "idle.jsonl", [{"prompt": 3}])
    (folder / "s.yaml").write_text(STUDY.replace("models:", "  idle: {source: ./idle.jsonl, format: prompt}\nmodels:"))
    assert told(capsys, "check", "s.yaml") == (0, ["s.yaml: fine"], [])


def test_a_model_without_room_for_the_longest_prompt_and_what_is_written_after_it_is_told_before_anything_runs(
    folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """The tiny model has 512 positions, a token for each byte, and three for the marks of a turn: of 505 bytes and 4 new
    tokens there are 512, of 506 one more."""
    tiny.write_lines(folder / "rows.jsonl", [{"prompt": "x" * 505}, *ROWS[:3]])
    tiny.write_lines(folder / "long.jsonl", [{"prompt": "x" * 506}, *ROWS[:3]])
    (folder / "s.yaml").write_text(
        STUDY.replace(
            "models:", "  long: {source: ./long.jsonl, format: prompt}\nrewards: {short: {kind: length}}\nmodels:"
        )
        + "  too_long: {do: sample, from: base, prompts: long, max_new_tokens: 4}\n"
        "  ranked: {do: rrhf, from: base, data: long, reward: short, max_new_tokens: 4, candidates: {by: sample, count: 2}}\n"
        "  bon: {do: decode, method: best_of_n, from: base, reward: short, n: 2}\n"
        "  table: {do: evaluate, policies: [base, bon], against: base, prompts: rows, rewards: [short], "
        "budget: {max_new_tokens: 5, samples_per_prompt: 2}}\n"
    )
    status, _, (sampled, ranked, evaluated, _) = told(capsys, "check", "s.yaml")
    assert status == 2
    assert sampled.endswith(
        "stages.too_long.max_new_tokens  `base` reads 512 tokens, and the longest prompt has 509 before 4 new ones; "
        "shorten the prompts or `max_new_tokens`"
    )
    assert "stages.ranked.max_new_tokens  `base` reads 512 tokens, and the longest prompt has 509 before 4" in ranked
    assert (
        "stages.table.budget.max_new_tokens  `base` reads 512 tokens, and the longest prompt has 508 before 5 new"
        in evaluated
    )
    fitting = (
        "--set",
        "stages.too_long.max_new_tokens=3",
        "--set",
        "stages.ranked.max_new_tokens=3",
        "--set",
        "stages.table.budget.max_new_tokens=4",
    )
    assert told(capsys, "check", "s.yaml", *fitting)[0] == 0


@pytest.mark.slow
def test_rows_longer_than_the_stage_fail_it_with_the_remedy(folder: Path, prefect_server: str) -> None:
    tiny.write_lines(folder / "rows.jsonl", ROWS[:3])
    pair = {"prompt": "y" * 4, "chosen": "yes", "rejected": "no"}
    # Of the long pair's sides, each has 3 marks, 40 bytes of prompt, its answer and the end mark.
    tiny.write_lines(folder / "pairs.jsonl", [*[pair] * 9, pair | {"prompt": "y" * 40, "chosen": "z" * 30}])
    (folder / "s.yaml").write_text(
        STUDY.replace("models:", "  pairs: {source: ./pairs.jsonl, format: preference}\nmodels:")
        + "  sft: {do: sft, from: base, data: pairs, max_length: 73}\n"
    )
    done = alignflow(folder, "run", "s.yaml", "--json", PREFECT_API_URL=prefect_server)
    ended = json.loads(done.stdout)
    assert done.returncode == 1
    assert ended["failed"] == {
        "sft": "data.pairs: 1 of 10 rows (10 %) are longer than 73 tokens; 1% may be dropped; raise `max_length` or set "
        "`too_long: truncate_left` or raise `max_dropped`",
    }
    assert ended["stages"]["rolls"] == "done"
    assert stored(folder / "home") == ["sample"]
    wider = ("--set", "stages.sft.max_length=74")
    done = alignflow(folder, "run", "s.yaml", "--json", *wider, PREFECT_API_URL=prefect_server)
    assert json.loads(done.stdout)["stages"] == {"rolls": "cached", "sft": "done"}
    assert stored(folder / "home") == ["sample", "sft"]
