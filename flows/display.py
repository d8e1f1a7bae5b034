"""What a person sees while a study runs: a live table in a terminal, plain lines elsewhere.

Everything else that the process or its children print (Prefect, MLflow, the trainers, a temporary server) goes to a
log file: file descriptors 1 and 2 are pointed at it, and the display writes to a copy of the old ones.
"""

from __future__ import annotations

import os
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, TextIO

from rich.console import Console, Group
from rich.live import Live
from rich.progress_bar import ProgressBar
from rich.spinner import Spinner
from rich.table import Table
from rich.text import Text

from flows.wording import measured


@contextmanager
def own_lines_only(log: Path) -> Iterator[tuple[TextIO, TextIO]]:
    """Points this process's output at `log`, and gives the terminal's (stdout, stderr)."""
    log.parent.mkdir(parents=True, exist_ok=True)
    sys.stdout.flush()
    sys.stderr.flush()
    saved = os.dup(1), os.dup(2)
    out, err = (os.fdopen(os.dup(s), "w", buffering=1, encoding="utf-8") for s in saved)
    file = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o644)
    os.dup2(file, 1)
    os.dup2(file, 2)
    os.close(file)
    try:
        yield out, err
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
        out.flush()
        err.flush()
        for number, copy in enumerate(saved, start=1):
            os.dup2(copy, number)
            os.close(copy)


class Display:
    """Draws the run. Its `observe` is called from any thread."""

    def __init__(self, stream: TextIO, stages: list[str], *, quiet: bool = False):
        self.stream = stream
        self.quiet = quiet
        self.live = stream.isatty() and not quiet
        width = None if self.live else 160
        self.console = Console(file=stream, width=width, highlight=False, markup=False)  # names hold brackets
        self.rows: dict[str, _Row] = {name: _Row() for name in stages}
        self.outcome: dict[str, Any] = {}
        self.message = ""
        self.interrupted = False
        self._lock = threading.Lock()

    @contextmanager
    def showing(self) -> Iterator[None]:
        if not self.live:
            yield
            return
        # Without the redirections: what others print is on its way to the log.
        with Live(
            get_renderable=lambda: Group(self._table(), Text(self.message, style="dim")),
            console=self.console,
            refresh_per_second=6,
            transient=True,
            redirect_stdout=False,
            redirect_stderr=False,
        ):
            yield

    def say(self, text: str) -> None:
        """A line of its own."""
        with self._lock:
            self.message = text
        if not self.live and not self.quiet:
            print(text, file=self.stream, flush=True)

    def observe(self, name: str, event: str, content: Any) -> None:
        if event == "outcome":
            self.outcome = content
            return
        with self._lock:
            row = self.rows.setdefault(name, _Row())
            line = row.take(event, content)
        if line and not self.live and not self.quiet:
            print(f"{time.strftime('%H:%M:%S')}  {name}: {line}", file=self.stream, flush=True)

    def _table(self) -> Table:
        table = Table.grid(padding=(0, 2))
        with self._lock:
            for name, row in self.rows.items():
                text = Text(row.text, style="dim", no_wrap=row.state != "failed", overflow="ellipsis")
                table.add_row(row.mark(), Text(name, no_wrap=True), row.bar(), text)
        return table

    def final(self) -> None:
        """How each stage ended, once the live table is gone."""
        if self.live:
            self.console.print(self._table())


class _Row:
    """One stage on the screen."""

    def __init__(self) -> None:
        self.state = "waits"
        self.text = ""
        self.done, self.total = 0, 0
        self.printed = 0.0
        self.spinner = Spinner("dots")

    def take(self, event: str, content: Any) -> str:
        """Takes an event in; returns a plain line where it deserves one."""
        if event == "progress":
            self.done, self.total, what = content
            self.text = f"{_amount(self.done, what)} of {_amount(self.total, what)} {what}"
            if time.monotonic() - self.printed > 15 and self.done < self.total:
                self.printed = time.monotonic()
                return self.text
            return ""
        if event == "metrics":
            return ""
        if event == "done":
            metrics, seconds = content
            self.state, self.text = "done", f"{seconds:.1f} s{_brief(metrics)}"
            return f"done in {self.text}"
        if event == "cached":
            self.state, self.text = "cached", f"stored already{_brief(content)}"
            return self.text
        if event == "failed":
            self.state, self.text = "failed", str(content)
            return f"failed: {content}"
        if event == "started":
            self.state, self.printed = "runs", time.monotonic()
            return "started"
        changed = self.text != content
        self.text = str(content)
        return self.text if changed else ""

    def mark(self) -> Any:
        if self.state == "runs":
            return self.spinner
        return {
            "waits": Text("·", style="dim"),
            "done": Text("✓", style="green"),
            "cached": Text("=", style="cyan"),
            "failed": Text("✗", style="red"),
        }[self.state]

    def bar(self) -> Any:
        if self.state == "runs" and self.total:
            return ProgressBar(self.total, self.done, width=24)
        return ""


def _amount(number: int, what: str) -> str:
    return f"{number / 1e6:.1f} M" if what == "bytes" else f"{number:,}"


def _brief(metrics: dict[str, float]) -> str:
    shown = [(k, v) for k, v in metrics.items() if not k.endswith(("_low", "_high"))][:4]
    return f"  ({measured(dict(shown))})" if shown else ""
