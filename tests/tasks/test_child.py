"""A stage's process: what it returns, what it raises, and that nothing of it outlives its time or its parent."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import textwrap
import threading
import time
from pathlib import Path

import pytest

from specs.execution import Execution
from specs.problems import UnfitError, UserError
from tasks import child
from tasks.job import Event, Result

BODIES = """
import os, signal, subprocess, sys, time
from specs.problems import UserError
from tasks.job import Result

def works(job):
    job.log.metrics(3, {"loss": 0.5})
    job.log.progress(1, 1, "steps")
    (job.out / "a.txt").write_text("made")
    print("to the log")
    return Result({"answer": 42.0})

def fills_memory(job):
    from tasks.memory import peak_memory
    held = bytearray(b"x") * 700_000_000
    del held
    with peak_memory() as little:  # which sets the system's mark back
        pass
    return Result({"meanwhile": float(little[0])})

def blames_the_person(job):
    raise UserError("rows: too few")

def is_defective(job):
    raise ZeroDivisionError("by zero")

def fills_the_disk(job):
    raise OSError(28, "No space left on device", str(job.out))

def kills_itself(job):
    os.kill(os.getpid(), signal.SIGKILL)

def leaves(job):
    os._exit(3)

def sleeps_with_a_grandchild(job):
    grandchild = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(120)"])
    (job.out / "pids").write_text(f"{os.getpid()} {grandchild.pid}")
    time.sleep(120)

def shows_devices(job):
    (job.out / "devices").write_text(os.environ.get("CUDA_VISIBLE_DEVICES", "unset"))
    return Result()
"""


@pytest.fixture
def request_for(tmp_path: Path):
    (tmp_path / "bodies_of_the_test.py").write_text(BODIES)

    def made(name: str, devices: str | None = None) -> child.Request:
        return child.Request(
            f"bodies_of_the_test:{name}",
            None,
            tmp_path,
            tmp_path / "scratch",
            Execution(),
            tmp_path / "logs" / "s.log",
            devices,
            (str(tmp_path),),
        )

    return made


@pytest.fixture(autouse=True)
def not_stopping():
    child.stopping.clear()
    yield
    child.stopping.clear()


def run(request: child.Request, **options: float) -> tuple[Result, list[Event]]:
    events: list[Event] = []
    result, _ = child.run_body(request, on_event=events.append, **options)
    return result, events


def test_a_body_returns_its_result_and_reports_in_order(request_for, tmp_path: Path) -> None:
    result, events = run(request_for("works"))
    assert result.metrics == {"answer": 42.0}
    assert result.machine["torch"]["threads"] >= 1  # it says itself what it computed with
    assert events == [("metrics", (3, {"loss": 0.5})), ("progress", (1, 1, "steps"))]
    assert (tmp_path / "a.txt").read_text() == "made"


def test_the_most_memory_of_a_body_is_told_though_parts_of_it_are_measured_by_themselves(request_for) -> None:
    small, big = (run(request_for(name))[0] for name in ("works", "fills_memory"))
    before = small.spent["host_bytes"]
    assert big.spent["host_bytes"] - before == pytest.approx(700e6, rel=0.1)
    assert big.metrics["meanwhile"] - before == pytest.approx(0, abs=100e6)
    assert big.spent["device_bytes"] == 0


def test_what_a_body_prints_goes_to_its_log(request_for, tmp_path: Path) -> None:
    log = tmp_path / "logs" / "s.log"
    for times in range(1, 6):  # the parent kills the child as soon as it has the result
        run(request_for("works"))
        assert log.read_text() == "to the log\n" * times
    with pytest.raises(child.BodyFailed):
        run(request_for("is_defective"))
    assert "ZeroDivisionError: by zero" in log.read_text()


def test_a_mistake_of_the_person_comes_back_as_one_line(request_for) -> None:
    with pytest.raises(UserError, match=r"^rows: too few$"):
        run(request_for("blames_the_person"))


def test_a_defect_comes_back_with_its_traceback(request_for) -> None:
    with pytest.raises(child.BodyFailed, match="ZeroDivisionError: by zero") as caught:
        run(request_for("is_defective"))
    assert "is_defective" in caught.value.details


def test_a_full_disk_is_the_environment(request_for) -> None:
    with pytest.raises(UnfitError, match="No space left on device"):
        run(request_for("fills_the_disk"))


def test_a_process_killed_by_the_system_is_said_so_and_worth_a_retry(request_for) -> None:
    with pytest.raises(child.Killed, match="ended by SIGKILL; was memory short"):
        run(request_for("kills_itself"))
    with pytest.raises(child.Killed, match="status 3 and no result"):
        run(request_for("leaves"))


def alive(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().split()[2] != "Z"
    except OSError:
        return False


def wait_until(condition, seconds: float = 30) -> bool:
    deadline = time.monotonic() + seconds
    while time.monotonic() < deadline:
        if condition():
            return True
        time.sleep(0.05)
    return False


def written_pids(folder: Path) -> list[int]:
    path = folder / "pids"
    assert wait_until(lambda: path.exists() and len(path.read_text().split()) == 2)
    return [int(p) for p in path.read_text().split()]


def test_a_timeout_stops_the_work_and_its_children(request_for, tmp_path: Path) -> None:
    with pytest.raises(child.TimedOut, match=r"took longer than 2 s"):
        run(request_for("sleeps_with_a_grandchild"), timeout=2)
    assert wait_until(lambda: not any(map(alive, written_pids(tmp_path))), 5)


def test_a_stop_ends_the_work_and_its_children(request_for, tmp_path: Path) -> None:
    threading.Timer(1.5, child.stopping.set).start()
    with pytest.raises(child.Interrupted):
        run(request_for("sleeps_with_a_grandchild"))
    assert wait_until(lambda: not any(map(alive, written_pids(tmp_path))), 5)


@pytest.mark.slow
def test_nothing_outlives_a_parent_that_is_killed(request_for, tmp_path: Path) -> None:
    request_for("works")
    script = textwrap.dedent(f"""
        from pathlib import Path
        from specs.execution import Execution
        from tasks import child
        if __name__ == "__main__":
            folder = Path({str(tmp_path)!r})
            request = child.Request("bodies_of_the_test:sleeps_with_a_grandchild", None, folder, folder, Execution(),
                                    folder / "s.log", None, (str(folder),))
            child.run_body(request, on_event=print)
    """)
    path = tmp_path / "parent.py"
    path.write_text(script)
    parent = subprocess.Popen([sys.executable, str(path)])
    pids = written_pids(tmp_path)
    os.kill(parent.pid, signal.SIGKILL)
    parent.wait()
    assert wait_until(lambda: not any(map(alive, pids)), 10)


def test_a_stage_sees_the_devices_it_was_given(request_for, tmp_path: Path) -> None:
    run(request_for("shows_devices", devices="3"))
    assert (tmp_path / "devices").read_text() == "3"
