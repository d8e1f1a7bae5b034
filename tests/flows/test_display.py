"""What a person sees while a study runs: plain lines in a file or a pipe, a live table in a terminal, nothing else."""

from __future__ import annotations

import fcntl
import io
import os
import pty
import re
import struct
import subprocess
import sys
import termios
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from flows.display import Display

EVENTS: list[tuple[str, Any, str]] = [
    ("started", None, "started"),
    ("waiting", "the GPUs are taken", "the GPUs are taken"),
    ("note", "scoring 32 answers by [gold]", "scoring 32 answers by [gold]"),
    ("metrics", (3, {"train/loss": 0.5}), ""),
    ("done", ({"loss": 0.123456, "loss_low": 0.1, "loss_high": 0.2}, 1.5), "done in 1.5 s  (loss 0.1235)"),
    ("done", ({}, 0.04), "done in 0.0 s"),
    ("cached", {"pairs": 12.0}, "stored already  (pairs 12)"),
    ("cached", dict.fromkeys("abcdef", 1.0), "stored already  (a 1, b 1, c 1, d 1)"),
    ("failed", "the reward `[red]x[/red]` failed", "failed: the reward `[red]x[/red]` failed"),
]


@pytest.mark.parametrize(("event", "content", "line"), EVENTS, ids=[event for event, _, _ in EVENTS])
def test_each_event_is_a_plain_line_where_it_deserves_one(event: str, content: Any, line: str) -> None:
    stream = io.StringIO()
    Display(stream, ["bon[n=4]"]).observe("bon[n=4]", event, content)
    if line:
        assert re.fullmatch(r"\d\d:\d\d:\d\d  bon\[n=4]: " + re.escape(line) + "\n", stream.getvalue())
    else:
        assert stream.getvalue() == ""


def test_the_same_note_twice_is_one_line() -> None:
    stream = io.StringIO()
    display = Display(stream, ["a"])
    for text in ("one", "one", "two", "one"):
        display.observe("a", "waiting", text)
    assert [line.split(": ")[1] for line in stream.getvalue().splitlines()] == ["one", "two", "one"]


def test_progress_is_told_now_and_then_and_not_at_its_end() -> None:
    stream = io.StringIO()
    display = Display(stream, ["a"])
    display.observe("a", "started", None)
    display.observe("a", "progress", (1_500_000, 3_000_000, "bytes"))
    assert "bytes" not in stream.getvalue()
    display.rows["a"].printed -= 16  # as if the last line were so many seconds old
    display.observe("a", "progress", (1_500_000, 3_000_000, "bytes"))
    display.observe("a", "progress", (1_600_000, 3_000_000, "bytes"))
    display.rows["a"].printed -= 16
    display.observe("a", "progress", (3_000_000, 3_000_000, "bytes"))
    (_, line) = stream.getvalue().splitlines()
    assert line.endswith("a: 1.5 M of 3.0 M bytes")


def test_the_outcome_is_kept_and_a_stage_that_was_not_announced_is_shown() -> None:
    stream = io.StringIO()
    display = Display(stream, [])
    display.observe("", "outcome", {"failed": {}})
    assert display.outcome == {"failed": {}}
    assert stream.getvalue() == ""
    display.observe("new", "started", None)
    assert stream.getvalue().endswith("new: started\n")


def test_quiet_says_nothing_but_what_is_printed_on_purpose() -> None:
    stream = io.StringIO()
    display = Display(stream, ["a"], quiet=True)
    with display.showing():
        display.say("small: 1 stages")
        for event, content, _ in EVENTS:
            display.observe("a", event, content)
    display.final()
    assert stream.getvalue() == ""
    display.console.print("failed: [a]: why")
    assert stream.getvalue() == "failed: [a]: why\n"


SCRIPT = """\
import os, subprocess, sys
from pathlib import Path
from flows.display import own_lines_only

print("before")
before = len(os.listdir("/proc/self/fd"))
try:
    with own_lines_only(Path("logs/run.log")) as (out, err):
        print("a library prints")
        print("a library warns", file=sys.stderr)
        os.write(1, b"a C library prints\\n")
        subprocess.run(["echo", "a child prints"])
        print("our line", file=out)
        print("our error", file=err)
        if "raise" in sys.argv:
            raise KeyError("inside")
except KeyError:
    print("raised")
del out, err
assert len(os.listdir("/proc/self/fd")) == before
print("after")
print("after on stderr", file=sys.stderr)
"""


@pytest.mark.parametrize("how", ["ends", "raise"])
def test_everything_but_our_own_lines_goes_to_the_log_and_the_output_is_put_back(tmp_path: Path, how: str) -> None:
    (tmp_path / "logs").mkdir()
    (tmp_path / "logs" / "run.log").write_text("the last run\n")
    done = subprocess.run(
        [sys.executable, "-c", SCRIPT, how], cwd=tmp_path, capture_output=True, text=True, timeout=60, check=True
    )
    raised = ["raised"] if how == "raise" else []
    assert done.stdout.splitlines() == ["before", "our line", *raised, "after"]
    assert done.stderr.splitlines() == ["our error", "after on stderr"]
    first, *log = (tmp_path / "logs" / "run.log").read_text().splitlines()
    assert first == "the last run"
    assert sorted(log) == ["a C library prints", "a child prints", "a library prints", "a library warns"]


class Terminal:
    """A pseudo-terminal and what was written to it."""

    def __init__(self, columns: int):
        self.master, slave = pty.openpty()
        fcntl.ioctl(slave, termios.TIOCSWINSZ, struct.pack("HHHH", 24, columns, 0, 0))
        self.stream = os.fdopen(slave, "w", encoding="utf-8")
        self.written = b""
        self.reader = threading.Thread(target=self._read)
        self.reader.start()

    def _read(self) -> None:
        try:
            while chunk := os.read(self.master, 65536):
                self.written += chunk
        except OSError:  # Linux says so when the other end is closed
            return

    def close(self) -> str:
        """The end of it: what was written, without colours and movements."""
        self.stream.close()
        self.reader.join(10)
        os.close(self.master)
        return re.sub(r"\x1b\[[0-9;?]*[A-Za-z]", "", self.written.decode()).replace("\r", "")


@contextmanager
def terminal(monkeypatch: pytest.MonkeyPatch, columns: int = 100) -> Iterator[Terminal]:
    monkeypatch.setenv("TERM", "xterm-256color")
    monkeypatch.delenv("NO_COLOR", raising=False)
    made = Terminal(columns)
    try:
        yield made
    finally:
        if not made.stream.closed:
            made.close()


def test_a_terminal_shows_every_stage_alive_and_at_the_end_how_each_ended(monkeypatch: pytest.MonkeyPatch) -> None:
    with terminal(monkeypatch) as screen:
        display = Display(screen.stream, ["rolls", "bon[n=4]", "rm", "table"])
        with display.showing():
            display.say("small: 4 stages, 3 to run")
            display.observe("rolls", "cached", {"responses": 32.0})
            display.observe("bon[n=4]", "done", ({}, 0.25))
            display.observe("rm", "started", None)
            display.observe("rm", "progress", (3, 8, "steps"))
        display.observe("rm", "failed", "its process was ended by SIGKILL")
        display.final()
        shown = screen.close()
    lines = [line.rstrip() for line in shown.splitlines()]
    assert any(re.fullmatch(r"\S rm [━╸╺]+ 3 of 8 steps", " ".join(line.split())) for line in lines), lines
    assert "small: 4 stages, 3 to run" in lines
    last = [" ".join(line.split()) for line in lines if line][-4:]
    assert last == [
        "= rolls stored already (responses 32)",
        "✓ bon[n=4] 0.2 s",
        "✗ rm its process was ended by SIGKILL",
        "· table",
    ]
    assert not any(re.match(r"\d\d:\d\d:\d\d", line) for line in lines)  # plain lines are for files


def test_a_terminal_is_left_with_its_cursor_even_when_the_run_raises(monkeypatch: pytest.MonkeyPatch) -> None:
    with terminal(monkeypatch) as screen:
        display = Display(screen.stream, ["a"])
        with pytest.raises(KeyError), display.showing():
            raise KeyError("inside")
        screen.close()
        assert screen.written.rindex(b"\x1b[?25h") > screen.written.rindex(b"\x1b[?25l")


def test_a_narrow_terminal_keeps_one_line_for_each_stage(monkeypatch: pytest.MonkeyPatch) -> None:
    with terminal(monkeypatch, columns=40) as screen:
        display = Display(screen.stream, ["rolls", "bon[n=4,temperature=0.5]"])
        display.observe("bon[n=4,temperature=0.5]", "note", "scoring 1,024 answers by a reward with a long name")
        display.final()
        shown = screen.close()
    assert len([line for line in shown.splitlines() if line.strip()]) == 2
    assert "bon[n=4,temperature=0.5]" in shown
