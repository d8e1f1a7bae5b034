"""`alignflow plan`: what a run would do, what it would take of this machine, and what of that does not fit."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import asdict
from functools import cached_property
from typing import Any

from registry.machine import Machine, machine
from specs.problems import UnfitError
from tasks import gpus
from tasks.experience import Expected, Experience, Time
from tasks.view import View

BESIDE = 0.6e9
"""Bytes that a run takes beside its stages: the flow, and a temporary Prefect server."""


class Outlook:
    """Of one study on this machine: what is to be fetched and built, with what it will take."""

    def __init__(self, view: View):
        self.view = view
        self._experience = Experience(view)
        self.expected: dict[str, Expected] = {
            name: self._experience.expected(name) for name in (*view.to_fetch(), *view.to_build())
        }

    @cached_property
    def times(self) -> dict[str, Time]:
        return {name: self._experience.time(name) for name in self.expected}

    @cached_property
    def machine(self) -> Machine:
        return machine(self.view.home, gpus=self.view.study.execution.gpus)

    @property
    def seconds(self) -> float:
        """Of all stages whose time is known: on a processor they run one after another."""
        return sum(time.seconds or 0.0 for time in self.times.values())

    @property
    def disk(self) -> float:
        """Bytes: what stays, and the largest checkpoints beside it."""
        every = self.expected.values()
        return sum(e.disk_bytes for e in every) + max((e.passing_bytes for e in every), default=0.0)

    def lost(self) -> list[str]:
        """Rows that will not be used, a line for each reason."""
        told: dict[str, None] = {}
        for name, expected in self.expected.items():
            for line in expected.lost:
                told[line if line.startswith("data.") else f"{name}: {line}"] = None
        return list(told)

    def unfit(self) -> Iterator[str]:
        """What does not fit this machine as it is now, a line each."""
        here, execution = self.machine, self.view.study.execution
        if told := gpus.lacking(execution):
            yield told
        on_devices = min(here.device_free, default=0)
        for name, e in self.expected.items():
            if here.memory_available and e.host_bytes + BESIDE > here.memory_available:
                yield (
                    f"`{name}` needs about {size(e.host_bytes + BESIDE)} of memory, and {size(here.memory_available)} of "
                    f"{size(here.memory)} are free"
                )
            if on_devices and e.device_bytes > on_devices:
                yield f"`{name}` needs about {size(e.device_bytes)} of a GPU's memory, and {size(on_devices)} are free"
        if self.disk > here.disk_free:
            yield f"all of it needs about {size(self.disk)} of disk, and {size(here.disk_free)} are free"

    def require(self) -> None:
        """Raises `UnfitError` where a stage cannot run whatever else this machine does: its models' weights alone are more than
        all of the memory. What is only reckoned is said and left to the person."""
        here = self.machine
        of, all_of = ("a GPU", max(here.device_memory)) if here.device_memory else ("this machine", here.memory)
        for name, e in self.expected.items():
            if all_of and e.weights_bytes > all_of:
                raise UnfitError(
                    f"`{name}` cannot run here: the weights of its models alone are {size(e.weights_bytes)}, and {of} has "
                    f"{size(all_of)}; take a smaller model, `precision: bf16`, or `lora: {{base: nf4}}`"
                )

    def as_json(self) -> dict[str, Any]:
        stages = [
            {
                "name": name,
                "kind": p.step.kind,
                "fingerprint": p.step.fingerprint,
                "state": p.state,
                "why": p.why,
                "inputs": [i for _, i in p.step.inputs],
                "expected": self._numbers(name),
            }
            for name, p in self.view.planned.items()
        ]
        return {
            "study": self.view.study.name,
            "stages": stages,
            "fetch": {name: self._numbers(name) for name in self.view.to_fetch()},
            "expected": {
                "seconds": round(self.seconds, 1),
                "host_bytes": round(max((e.host_bytes for e in self.expected.values()), default=0.0)),
                "device_bytes": round(max((e.device_bytes for e in self.expected.values()), default=0.0)),
                "disk_bytes": round(self.disk),
            },
            "machine": asdict(self.machine),
            "unfit": list(self.unfit()),
            "rows": self.lost(),
        }

    def lines(self) -> Iterator[str]:
        view = self.view
        rows: list[tuple[str, ...]] = [
            ("fetch", name, "", self._from(name), *self._cells(name), "") for name in view.to_fetch()
        ]
        rows += [
            (p.state, name, p.step.fingerprint[:16], p.step.kind, *self._cells(name), p.why)
            for name, p in view.planned.items()
        ]
        head = [("state", "stage", "fingerprint", "kind", "memory", "disk", "time", "why")]
        yield from _aligned(head + rows if self.expected else [(*row[:4], row[-1]) for row in rows])
        if self.expected:
            yield from ("", *self._summary())

    def _from(self, name: str) -> str:
        """Where what is to be fetched lies: a source of the study's, or the version that holds a promoted model."""
        step = self.view.nodes[name]
        entry = self.view.study.models.get(name) or step.node.entry
        return str(getattr(entry, "source", step.held_by))

    def _summary(self) -> Iterator[str]:
        here, every = self.machine, self.expected.values()
        timed = [time for time in self.times.values() if time.seconds is not None]
        told = sum(1 for time in timed if time.runs)
        by = [f"{told} of {len(timed)} stages by earlier runs"] if told else []
        by += ["by this processor's speed, so perhaps half or twice that"] if told < len(timed) else []
        if timed:
            yield f"time    about {duration(self.seconds)} ({', the others '.join(by)})"
        yield f"memory  {size(max(e.host_bytes for e in every) + BESIDE)} at most, of {size(here.memory_available)} that are free"
        if here.device_free:
            yield f"GPU     {size(max(e.device_bytes for e in every))} at most, of {size(min(here.device_free))} that are free"
        yield f"disk    {size(self.disk)}, of {size(here.disk_free)} that are free"
        for name, e in self.expected.items():
            if e.unknown:
                yield f"unknown {name}: {e.unknown}"
        yield from (f"rows    {line}" for line in self.lost())
        yield from (f"does not fit this machine: {line}" for line in self.unfit())

    def _numbers(self, name: str) -> Mapping[str, Any] | None:
        if name not in self.expected:
            return None
        expected, time = self.expected[name], self.times[name]
        if expected.unknown:
            return {"unknown": expected.unknown}
        bytes_ = {k: round(v) for k, v in asdict(expected).items() if k.endswith("_bytes")}
        return {**bytes_, "seconds": None if time.seconds is None else round(time.seconds, 1), "runs": time.runs}

    def _cells(self, name: str) -> tuple[str, str, str]:
        """Memory, disk and time of a stage."""
        if name not in self.expected:
            return "", "", ""
        expected, time = self.expected[name], self.times[name]
        if expected.unknown:
            return "?", "?", "?"
        known = "?" if time.seconds is None else duration(time.seconds)
        return size(expected.device_bytes or expected.host_bytes), size(expected.disk_bytes), known


def _aligned(rows: list[tuple[str, ...]]) -> Iterator[str]:
    """Four columns to the left, numbers to the right, the last as it comes."""
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    for row in rows:
        cells = [f"{cell:{width}}" for cell, width in zip(row[:4], widths, strict=False)]
        cells += [f"{cell:>{width}}" for cell, width in zip(row[4:-1], widths[4:-1], strict=True)]
        yield "  ".join([*cells, row[-1]]).rstrip()


def size(amount: float) -> str:
    """Bytes with a unit, to two digits."""
    for unit, scale in (("GB", 1e9), ("MB", 1e6), ("kB", 1e3)):
        if amount >= scale:
            number = amount / scale
            return f"{number:.1f} {unit}" if number < 9.95 else f"{number:,.0f} {unit}"
    return f"{amount:.0f} B"


def duration(seconds: float) -> str:
    """Seconds as a person says them, to a reasonable digit."""
    if seconds < 59.5:
        return f"{round(seconds)} s" if seconds >= 0.5 else "<1 s"
    minutes = round(seconds / 60)
    return f"{minutes} min" if minutes < 60 else f"{minutes // 60} h {minutes % 60:02} min"
