"""The store: whole artifacts or none, one build for many who want it, and no lock that outlives its holder."""

from __future__ import annotations

import errno
import multiprocessing
import os
import signal
import time
from pathlib import Path

import pytest

from registry import store
from registry.home import make_home
from specs.problems import UnfitError

PRINT = "ab" * 32


def build(home: Path, text: str = "x") -> store.Stored:
    with store.locked(home, PRINT), store.building(home, "kind", PRINT) as out:
        (out / "inner").mkdir()
        (out / "inner" / "a.txt").write_text(text)
        return store.publish(home, "kind", PRINT, out, {"metrics": {"m": 1.0}})


@pytest.fixture
def made(home: Path) -> Path:
    return make_home()


def test_what_is_published_is_found_with_sizes_and_digests(made: Path) -> None:
    assert store.find(made, "kind", PRINT) is None
    build(made)
    found = store.find(made, "kind", PRINT, verify=True)
    assert found is not None
    assert found.record["files"]["inner/a.txt"]["bytes"] == 1
    assert found.record["metrics"] == {"m": 1.0}


def test_nothing_is_left_beside_a_published_artifact(made: Path) -> None:
    stored = build(made)
    assert [p.name for p in stored.folder.parent.iterdir()] == [stored.folder.name]


def test_a_build_that_raises_leaves_nothing(made: Path) -> None:
    with pytest.raises(RuntimeError), store.building(made, "kind", PRINT) as out:
        (out / "a.txt").write_text("half")
        raise RuntimeError
    assert list((made / "store" / "kind").iterdir()) == []
    assert store.find(made, "kind", PRINT) is None


def test_a_folder_without_a_record_does_not_exist(made: Path) -> None:
    stored = build(made)
    (stored.folder / store.RECORD).unlink()
    assert store.find(made, "kind", PRINT) is None


def test_a_file_of_another_size_or_a_missing_one_makes_it_not_whole(made: Path) -> None:
    stored = build(made)
    (stored.folder / "inner" / "a.txt").write_text("longer")
    assert store.find(made, "kind", PRINT) is None
    build(made)
    (stored.folder / "inner" / "a.txt").unlink()
    assert store.find(made, "kind", PRINT) is None


def test_verify_sees_a_changed_file_of_the_same_size(made: Path) -> None:
    stored = build(made)
    (stored.folder / "inner" / "a.txt").write_text("y")
    assert store.find(made, "kind", PRINT) is not None
    assert store.find(made, "kind", PRINT, verify=True) is None


def test_a_record_of_another_fingerprint_is_not_taken(made: Path) -> None:
    build(made)
    assert store.find(made, "kind", PRINT[:16] + "00" * 24) is None


def _build_slowly(home: str, built: object) -> None:
    folder = Path(home)
    with store.locked(folder, PRINT):
        if store.find(folder, "kind", PRINT):
            return
        with store.building(folder, "kind", PRINT) as out:
            built.append(os.getpid())  # type: ignore[attr-defined]
            time.sleep(0.3)
            (out / "a.txt").write_text(str(os.getpid()))
            store.publish(folder, "kind", PRINT, out, {})


def test_two_processes_that_want_one_artifact_build_it_once(made: Path) -> None:
    context = multiprocessing.get_context("fork")
    with context.Manager() as manager:
        built = manager.list()
        processes = [context.Process(target=_build_slowly, args=(str(made), built)) for _ in range(4)]
        for process in processes:
            process.start()
        for process in processes:
            process.join(20)
        assert len(built) == 1
    assert store.find(made, "kind", PRINT) is not None


def _hold_half_built(home: str, ready: object) -> None:
    folder = Path(home)
    with store.locked(folder, PRINT), store.building(folder, "kind", PRINT) as out:
        (out / "half.txt").write_text("half")
        ready.set()  # type: ignore[attr-defined]
        time.sleep(60)


def test_a_builder_killed_outright_leaves_neither_a_lock_nor_an_artifact(made: Path) -> None:
    context = multiprocessing.get_context("fork")
    ready = context.Event()
    process = context.Process(target=_hold_half_built, args=(str(made), ready))
    process.start()
    assert ready.wait(10)
    assert process.pid is not None
    os.kill(process.pid, signal.SIGKILL)
    process.join(10)
    assert store.find(made, "kind", PRINT) is None
    started = time.monotonic()
    stored = build(made)
    assert time.monotonic() - started < 5
    assert set(stored.record["files"]) == {"inner/a.txt"}


def test_who_waits_for_a_lock_is_told_and_may_give_up(made: Path) -> None:
    def give_up() -> None:
        raise InterruptedError

    with store.locked(made, PRINT), pytest.raises(InterruptedError), store.locked(made, PRINT, waiting=give_up):
        pytest.fail("the lock was given twice")


@pytest.mark.parametrize(
    ("number", "text"), [(errno.ENOSPC, "is full; `alignflow gc`"), (errno.EROFS, "cannot be written")]
)
def test_disk_faults_are_one_line_with_the_remedy(made: Path, number: int, text: str) -> None:
    with pytest.raises(UnfitError, match=text), store.disk_errors(made):
        raise OSError(number, os.strerror(number), str(made))


def test_a_home_that_cannot_be_written_is_one_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("ALIGNFLOW_HOME", str(tmp_path / "file" / "home"))
    with pytest.raises(UnfitError, match=r"cannot be written: .*; set ALIGNFLOW_HOME to a folder that can"):
        make_home()


def test_the_readable_link_follows_the_newest_artifact(made: Path) -> None:
    stored = build(made)
    store.link(made, "study", "bon[n=4]", stored)
    store.link(made, "study", "bon[n=4]", stored)
    link = made / "studies" / "study" / "bon[n=4]"
    assert link.is_symlink()
    assert (link / "inner" / "a.txt").read_text() == "x"
