"""Runs a stage body in a process of its own, whose whole group dies with it.

A fork server that has torch, transformers, peft and TRL loaded starts one in a twentieth of a second. The child leads a
session; on a timeout, a stop or any exit of the body its group is killed, and a thread in it kills the group when
the parent is gone, however it went.
"""

from __future__ import annotations

import errno
import importlib
import multiprocessing
import os
import re
import signal
import sys
import threading
import time
import traceback
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from multiprocessing.connection import Connection, wait
from pathlib import Path
from typing import Any

from specs.problems import UnfitError, UserError
from tasks.job import Event, Job, Log, Result

PRELOAD = ["tasks.preload"]
stopping = threading.Event()
"""Set to end every child of this process, on an interrupt for one."""

_server_started = threading.Lock()


class Interrupted(Exception):
    """The run was told to stop; finished stages stay, this one starts over next time."""


class TimedOut(Exception):
    """The stage took longer than `execution.timeout`."""


class Killed(ConnectionError):
    """The system killed the stage's process (out of memory for one). Worth another try."""


class BodyFailed(Exception):
    """The body raised something that is no fault of the person's input: a defect. `details` is its traceback."""

    def __init__(self, text: str, details: str):
        super().__init__(text)
        self.details = details


@dataclass(frozen=True)
class Request:
    """What the child needs: picklable, and small."""

    body: str
    """`module:function`"""
    artifact: Any
    out: Path
    scratch: Path
    execution: Any
    log_file: Path
    devices: str | None
    """The value of CUDA_VISIBLE_DEVICES, or None to leave it."""
    python_path: tuple[str, ...] = ()
    processes: int = 1
    """How many run the body together."""


def context() -> Any:
    """The fork server's context, with its preload set."""
    forkserver = multiprocessing.get_context("forkserver")
    forkserver.set_forkserver_preload(PRELOAD)
    return forkserver


def warm_up() -> None:
    """Starts the fork server, which then loads torch and the trainers while the caller does other things."""
    context()
    from multiprocessing import forkserver

    with _server_started:
        before = os.environ.get("PYTHONSAFEPATH")
        os.environ["PYTHONSAFEPATH"] = "1"  # a person's `tasks.py` in the current folder is not ours
        try:
            forkserver.ensure_running()
        finally:
            os.environ.pop("PYTHONSAFEPATH") if before is None else os.environ.update(PYTHONSAFEPATH=before)


def run_body(
    request: Request,
    *,
    on_event: Callable[[Event], None],
    timeout: float | None = None,
) -> tuple[Result, float]:
    """Runs the body and returns its result and how many seconds it took. `on_event` gets its reports in this
    thread. `timeout` counts from the body's first step, not from the wait for the fork server to load. Raises what the
    body raised as `UserError`, `UnfitError` or `BodyFailed`, or `TimedOut`, `Killed`, `Interrupted`."""
    warm_up()
    forkserver = context()
    receiver, sender = forkserver.Pipe(duplex=False)
    process = forkserver.Process(target=_child, args=(sender, request), daemon=False)
    process.start()
    sender.close()
    began = time.monotonic()
    deadline = None
    started = False
    try:
        while True:
            if stopping.is_set():
                raise Interrupted("stopped")
            if deadline and time.monotonic() > deadline:
                raise TimedOut(f"took longer than {timeout:g} s (`execution.timeout`) and was stopped")
            if receiver not in wait([receiver], timeout=0.1):
                continue
            try:
                kind, content = receiver.recv()
            except EOFError:
                process.join(5)
                if not started and (process.exitcode or 0) > 0:
                    raise BodyFailed(f"its process could not start (status {process.exitcode})", "") from None
                raise Killed(_how_it_died(process.exitcode)) from None
            if kind == "began":
                started = True
                began = time.monotonic()
                deadline = began + timeout if timeout else None
                continue
            if kind == "done":
                return Result(**content), time.monotonic() - began
            if kind == "failed":
                raise _failure(*content)
            on_event((kind, content))
    finally:
        _kill_group(process)
        receiver.close()


def _how_it_died(code: int | None) -> str:
    if code is not None and code < 0:
        name = signal.Signals(-code).name
        hint = "; was memory short?" if name == "SIGKILL" else ""
        return f"its process was ended by {name}{hint}"
    return f"its process ended with status {code} and no result"


def _failure(kind: str, text: str, details: str) -> Exception:
    if kind == "user":
        return UserError(text)
    if kind == "unfit":
        return UnfitError(text)
    if kind == "killed":
        return Killed(text)
    return BodyFailed(text, details)


def _kill_group(process: Any) -> None:
    with suppress(ProcessLookupError, PermissionError):
        os.killpg(process.pid, signal.SIGKILL)
    with suppress(ProcessLookupError):  # it may not have led a group yet
        process.kill()
    process.join(5)
    process.close() if process.exitcode is not None else None


def _child(sender: Connection, request: Request) -> None:
    os.setsid()
    signal.signal(signal.SIGTERM, signal.SIG_DFL)
    threading.Thread(target=_die_with_parent, daemon=True).start()
    request.log_file.parent.mkdir(parents=True, exist_ok=True)
    output = os.open(request.log_file, os.O_WRONLY | os.O_CREAT | os.O_APPEND)
    os.dup2(output, 1)
    os.dup2(output, 2)
    if request.devices is not None:
        os.environ["CUDA_VISIBLE_DEVICES"] = request.devices
    sys.path[:] = dict.fromkeys((*request.python_path, *sys.path))
    lock = threading.Lock()

    def send(event: Event) -> None:
        with lock:
            sender.send(event)

    send(("began", None))
    job = Job(request.artifact, request.out, request.scratch, request.execution, Log(send))
    outcome = outcome_of(request.body, job) if request.processes == 1 else _together(request, job, send)
    with suppress(OSError):  # a full disk loses lines of the log and not the result
        sys.stdout.flush()  # at the next word the parent kills this process
        sys.stderr.flush()
    send(outcome)


def _together(request: Request, job: Job, send: Callable[[Event], None]) -> Event:
    from tasks.distributed import launch

    return launch(request.body, job, request.processes, send)


def outcome_of(body: str, job: Job) -> Event:
    """Runs the body; its result or its failure as the last event."""
    from tasks.machine import machine  # loads torch, which the parent does without

    try:
        result = _body(body)(job)
    except UserError as error:
        return "failed", ("user", str(error), "")
    except UnfitError as error:
        return "failed", ("unfit", str(error), "")
    except BaseException as error:
        if fault := _disk_fault(error, job.out):
            return "failed", ("unfit", fault, "")
        traceback.print_exc()
        return "failed", ("defect", f"{type(error).__name__}: {error}", traceback.format_exc())
    from tasks.memory import most_in_use

    spent = most_in_use() | {"processor_seconds": round(time.process_time(), 3)}
    return "done", {"metrics": result.metrics, "machine": machine(), "spent": spent}


def _disk_fault(error: BaseException, out: Path) -> str | None:
    """A full or read-only disk as one line. safetensors raises an error of its own that quotes the system's number."""
    quoted = re.search(r"\(os error (\d+)\)", str(error))
    number = error.errno if isinstance(error, OSError) else int(quoted[1]) if quoted else None
    if number in (errno.ENOSPC, errno.EDQUOT):
        return f"{out.parent}: {os.strerror(number)}; `alignflow gc` frees what no study needs"
    return f"{out.parent}: {os.strerror(number)}" if number == errno.EROFS else None


def _body(name: str) -> Callable[[Job], Result]:
    module, function = name.split(":")
    body: Callable[[Job], Result] = getattr(importlib.import_module(module), function)
    return body


def _die_with_parent() -> None:
    parent = multiprocessing.parent_process()
    if parent is not None:
        parent.join()
        os.killpg(0, signal.SIGKILL)
