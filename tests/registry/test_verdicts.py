"""Replies that are kept: by everything that they depend on, from several processes at once, and through a kill."""

from __future__ import annotations

import multiprocessing
import os
import signal
from pathlib import Path
from typing import Any

import pytest

from registry.judges import request
from registry.verdicts import Reply, keep, key, known
from specs.judges import Judge
from specs.problems import UnfitError

REPLY = Reply("[[A]]", 210, 3)


def asked(prompt: str = "Why?", first: str = "So.", second: str = "No.", **fields: Any) -> str:
    made = Judge.model_validate({"base_url": "http://127.0.0.1:1/v1", "model": "m"} | fields)
    return key(made.base_url, request(made, [{"role": "user", "content": prompt}], first, second))


def test_a_reply_is_found_under_what_was_asked(tmp_path: Path) -> None:
    path = tmp_path / "home" / "verdicts.db"
    assert known(path, [asked()]) == {}
    keep(path, asked(), REPLY)
    keep(path, asked("What?"), Reply("", None, None))
    assert known(path, [asked(), asked("What?"), asked("Who?")]) == {
        asked(): REPLY,
        asked("What?"): Reply("", None, None),
    }


def test_all_that_a_reply_depends_on_is_in_its_key_and_how_many_pairs_are_shown_is_not() -> None:
    others = {
        asked("What?"), asked(first="Yes."), asked(second="Yes."), asked(first="No.", second="So."), asked(model="n"),
        asked(base_url="http://127.0.0.1:2/v1"), asked(instruction="Which is shorter?"),
    }  # fmt: skip
    assert len(others | {asked()}) == 8
    assert asked(pairs_per_prompt=2, parallel=9, timeout="9s") == asked()


def test_the_first_reply_stays(tmp_path: Path) -> None:
    path = tmp_path / "verdicts.db"
    keep(path, asked(), REPLY)
    keep(path, asked(), Reply("[[B]]", 1, 1))
    assert known(path, [asked()]) == {asked(): REPLY}


def _keep_many(path: Path, start: int) -> None:
    for number in range(start, start + 50):
        keep(path, f"{number}", Reply(f"[[A]] {number}", number, 1))


def test_processes_that_keep_replies_at_once_lose_none(tmp_path: Path) -> None:
    path = tmp_path / "verdicts.db"
    with multiprocessing.get_context("spawn").Pool(4) as pool:
        pool.starmap(_keep_many, [(path, start) for start in (0, 25, 50, 100)])
    numbers = [str(number) for number in range(150)]
    assert known(path, numbers) == {n: Reply(f"[[A]] {n}", int(n), 1) for n in numbers}


def _keep_and_die(path: Path) -> None:
    _keep_many(path, 0)
    import sqlite3

    database = sqlite3.connect(path)
    database.execute("INSERT INTO replies VALUES ('half', 'never', 1, 1)")
    os.kill(os.getpid(), signal.SIGKILL)


def test_a_process_that_is_killed_leaves_what_it_kept_and_nothing_half_written(tmp_path: Path) -> None:
    path = tmp_path / "verdicts.db"
    process = multiprocessing.get_context("spawn").Process(target=_keep_and_die, args=(path,))
    process.start()
    process.join()
    assert process.exitcode == -signal.SIGKILL
    assert known(path, ["half", "0", "49"]).keys() == {"0", "49"}
    keep(path, "more", REPLY)
    assert known(path, ["more"]) == {"more": REPLY}


def test_a_file_that_is_no_database_is_told_in_one_line(tmp_path: Path) -> None:
    path = tmp_path / "verdicts.db"
    path.write_bytes(b"not a database at all" * 100)
    for use in (lambda: known(path, ["a"]), lambda: keep(path, "a", REPLY)):
        with pytest.raises(UnfitError) as told:
            use()
        assert str(told.value) == f"{path}, which keeps the replies of judges, cannot be used: file is not a database"
