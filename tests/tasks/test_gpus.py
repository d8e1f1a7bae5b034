"""GPUs by pretended names: who may use which, one holder at a time, and nothing held by the dead."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import IO

import pytest

from specs.execution import Execution
from specs.problems import UnfitError
from tasks import gpus

HOLDER = """\
import os, sys
from pathlib import Path
from tasks import gpus
from tasks.gpus import leased
gpus.LEASES = Path(os.environ["LEASES"])
with leased(int(sys.argv[1])) as names:
    print(names, flush=True)
    sys.stdin.read()
"""
CLAIMER = """\
import os, sys
from pathlib import Path
from tasks import gpus
from tasks.gpus import leased
gpus.LEASES = Path(os.environ["LEASES"])
for _ in range(4):
    with leased(1) as name:
        os.close(os.open(name, os.O_CREAT | os.O_EXCL))  # fails where another has it
        print(name)
        os.unlink(name)
"""


class GivenUp(Exception):
    pass


def give_up() -> None:
    raise GivenUp


@pytest.fixture(autouse=True)
def fresh(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Leases of the test's own, and no memory of the devices of another test."""
    monkeypatch.setenv("LEASES", str(tmp_path / "leases"))
    monkeypatch.setattr(gpus, "LEASES", tmp_path / "leases")
    gpus.device_names.cache_clear()
    gpus._card.cache_clear()
    yield
    gpus.device_names.cache_clear()
    gpus._card.cache_clear()


@pytest.fixture
def visible(monkeypatch: pytest.MonkeyPatch) -> Callable[[str], None]:
    def see(names: str) -> None:
        monkeypatch.setenv("CUDA_VISIBLE_DEVICES", names)
        gpus.device_names.cache_clear()

    return see


@pytest.fixture
def holder() -> Iterator[Callable[[int], tuple[subprocess.Popen[str], str]]]:
    """Starts a process that holds so many GPUs until its input ends; gives it and their names."""
    started = []

    def start(count: int) -> tuple[subprocess.Popen[str], str]:
        command = [sys.executable, "-c", HOLDER, str(count)]
        process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
        started.append(process)
        return process, _output(process).readline().strip()

    yield start
    for process in started:
        process.kill()
        process.communicate()


def _output(process: subprocess.Popen[str]) -> IO[str]:
    assert process.stdout is not None
    return process.stdout


@pytest.mark.parametrize(
    ("variable", "names"),
    [
        ("0,1", ("0", "1")),
        ("3", ("3",)),
        (" 0, 1 ", ("0", "1")),
        ("", ()),
        ("-1", ()),
        ("GPU-1f,MIG-2e/0/1", ("GPU-1f", "MIG-2e/0/1")),
    ],
)
def test_the_variable_says_which_devices_there_are(
    visible: Callable[[str], None], variable: str, names: tuple[str, ...]
) -> None:
    visible(variable)
    assert gpus.device_names() == names


@pytest.mark.parametrize(
    ("program", "names"), [("echo 0; echo 1", ("0", "1")), ("echo broken; exit 9", ()), (None, ())]
)
def test_without_the_variable_the_driver_is_asked(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, program: str | None, names: tuple[str, ...]
) -> None:
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    monkeypatch.setenv("PATH", str(tmp_path))
    if program:
        (tmp_path / "nvidia-smi").write_text(f"#!/bin/sh\n{program}\n")
        (tmp_path / "nvidia-smi").chmod(0o755)
    assert gpus.device_names() == names


def test_a_study_may_not_ask_for_more_than_there_are(visible: Callable[[str], None]) -> None:
    visible("0,1")
    gpus.require(Execution())
    gpus.require(Execution(gpus=2))
    with pytest.raises(UnfitError, match=r"`execution.gpus: 3`, and this machine shows 2; run it where there are"):
        gpus.require(Execution(gpus=3))


def test_a_stage_without_gpus_waits_for_nothing_and_is_shown_none(tmp_path: Path) -> None:
    with gpus.leased(0, give_up) as names:
        assert names == ""
    assert not list(tmp_path.iterdir())


def test_leases_in_one_process_are_of_different_devices(visible: Callable[[str], None]) -> None:
    visible("0,GPU-1f,MIG-2e/0/1")
    with gpus.leased(1, give_up) as one, gpus.leased(2, give_up) as two:
        assert (one, two) == ("0", "GPU-1f,MIG-2e/0/1")
        with pytest.raises(GivenUp), gpus.leased(1, give_up):
            pass
    with gpus.leased(3, give_up) as all_of_them:
        assert all_of_them == "0,GPU-1f,MIG-2e/0/1"


def test_what_another_process_holds_is_not_given_and_comes_back_with_its_end(
    visible: Callable[[str], None], holder: Callable[[int], tuple[subprocess.Popen[str], str]]
) -> None:
    visible("0,1")
    other, held = holder(1)
    assert held == "0"
    with gpus.leased(1, give_up) as mine:
        assert mine == "1"
    with pytest.raises(GivenUp), gpus.leased(2, give_up):
        pass
    other.communicate("")
    with gpus.leased(2, give_up) as both:
        assert both == "0,1"


def test_a_process_that_is_killed_holds_nothing_any_more(
    visible: Callable[[str], None], holder: Callable[[int], tuple[subprocess.Popen[str], str]]
) -> None:
    visible("0,1")
    other, held = holder(2)
    assert held == "0,1"
    other.kill()
    other.wait()
    with gpus.leased(2, give_up) as both:
        assert both == "0,1"


def test_who_waits_for_several_keeps_none_from_others_and_goes_on_when_they_are_free(
    visible: Callable[[str], None], holder: Callable[[int], tuple[subprocess.Popen[str], str]]
) -> None:
    visible("0,1")
    other, _ = holder(1)
    meanwhile = []

    def waiting() -> None:
        with gpus.leased(1, give_up) as name:
            meanwhile.append(name)
        other.communicate("")

    with gpus.leased(2, waiting) as both:
        assert both == "0,1"
    assert meanwhile == ["1"]


def test_a_lease_ends_with_an_exception(visible: Callable[[str], None]) -> None:
    visible("0")
    with pytest.raises(KeyError), gpus.leased(1, give_up):
        raise KeyError("inside")
    with gpus.leased(1, give_up) as name:
        assert name == "0"


def test_processes_in_a_crowd_never_share_a_device(visible: Callable[[str], None], tmp_path: Path) -> None:
    visible("0,1")
    crowd = [
        subprocess.Popen(
            [sys.executable, "-c", CLAIMER], cwd=tmp_path, env=os.environ, stdout=subprocess.PIPE, text=True
        )
        for _ in range(4)
    ]
    taken = [process.communicate(timeout=120)[0].split() for process in crowd]
    assert [process.returncode for process in crowd] == [0] * 4
    assert [len(names) for names in taken] == [4] * 4
    assert set().union(*taken) <= {"0", "1"}


def test_one_card_under_two_names_is_leased_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, visible: Callable[[str], None]
) -> None:
    (tmp_path / "nvidia-smi").write_text("#!/bin/sh\necho 0, GPU-1f2e3d\necho 1, GPU-aabbcc\n")
    (tmp_path / "nvidia-smi").chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}:{os.environ['PATH']}")
    visible("0")
    with gpus.leased(1, give_up):
        visible("GPU-1f")
        with pytest.raises(GivenUp), gpus.leased(1, give_up):
            pass
        visible("GPU-aabbcc,0")
        with gpus.leased(1, give_up) as other:
            assert other == "GPU-aabbcc"
