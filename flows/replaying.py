"""`alignflow replay`: a past run once more, from its note alone, in a home of its own, and what came out otherwise.

What would make it another run (data that changed, a file that is gone) is refused. What only surrounds it (versions, processor,
threads) is told before it begins, with what it means. The store of the run is read and never written.
"""

from __future__ import annotations

import json
import os
import shutil
import sqlite3
import tempfile
from collections.abc import Iterator
from contextlib import closing, contextmanager
from dataclasses import asdict
from pathlib import Path
from typing import Any

from filelock import FileLock, Timeout
from rich.table import Table

from flows import silence
from flows.agreement import WORDS, Compared, compared, disagreeing
from flows.display import Display, own_lines_only
from flows.past_runs import PastRun, past_run
from flows.running import DONE, MISSED, run
from flows.surroundings import Difference, differences, here
from flows.wording import ends
from registry import verdicts
from registry.home import home, make_home
from registry.store import Stored, find, folder_of
from specs.execution import Tracking
from specs.load import Loaded
from specs.problems import Mark, Problem, SpecError, UnfitError, UserError, listed
from specs.study import Study
from specs.yaml_tree import Positions
from tasks import gpus
from tasks.places import registry_place
from tasks.telling import TRAINED
from tasks.view import View, is_packaged

DISAGREES = 3
"""The exit status where something does not agree; a run has it for an expectation that was missed."""
UNDER_WAY = "replay.json"
"""Lies in a home while a replay fills it, so that a replay that was stopped can go on there."""
TOLD = 12
"""Lines of one kind; `--json` has them all."""


def replay(asked: str, into: Path | None, *, as_json: bool) -> int:
    """Builds the run anew and compares. Returns the exit status. Raises `UserError` and `SpecError` where it cannot be the same
    run, `UnfitError` where this machine cannot run it."""
    silence.apply()
    past = past_run(asked, home())
    records = {name: past.stored(name).record for name in past.view.planned}
    study = past.view.study.model_copy(update={"tracking": Tracking()})  # its runs are no news of the old experiment's
    if any(step.held_by for step in past.view.nodes.values()):
        os.environ["MLFLOW_REGISTRY_URI"], _ = registry_place(past.view.study, past.view.home)
    _refuse_changes(past, study)
    gpus.require(study.execution)
    folder = _own_home(past, into)
    with _alone_in(folder):
        return _replay(past, study, records, folder, keep=into is not None, as_json=as_json)


def _replay(past: PastRun, study: Study, records: dict[str, Any], folder: Path, *, keep: bool, as_json: bool) -> int:
    judged = verdicts.place()
    os.environ["ALIGNFLOW_HOME"] = str(folder)
    os.environ.pop("MLFLOW_TRACKING_URI", None)
    make_home()
    with own_lines_only(folder / "logs" / "replay.log") as (out, err):
        found = differences(records, past.view.home, here(study.execution, folder))
        display = Display(err if as_json else out, [])
        _tell_surroundings(display, past, found)
    reused = _take_over(past, folder, judged)
    agreement: list[Compared] = []

    def conclude(display: Display, again: View, _: Any) -> None:
        for name in past.view.planned:
            now = again.stored(name)
            assert now is not None
            agreement.append(compared(past.view, again, name, past.stored(name), now))
        _tell_agreement(display, agreement, reused)

    loaded = Loaded(study, Positions({((), "value"): _mark(past)}), past.view.folder / "study.yaml")
    status = run(loaded, offline=False, force=[], as_json=as_json, quiet=False, conclude=conclude)
    if status not in (DONE, MISSED):
        return status
    (folder / UNDER_WAY).unlink()
    apart = disagreeing(past.view, agreement)
    kept = keep or bool(apart)
    if not kept:
        shutil.rmtree(folder)
    if as_json:
        print(json.dumps(_as_json(past, found, agreement, apart, folder if kept else None, reused)))
    else:
        print(f"{_sentence(agreement, apart)}{f'; it lies in {folder}' if kept else ''}")
    return DISAGREES if apart else DONE


def _mark(past: PastRun) -> Mark:
    return Mark(f"run {past.id[:8]}")


def _refuse_changes(past: PastRun, study: Study) -> None:
    """Looks at the leaves again, in no home. Raises `SpecError` that names each that is not what it was."""
    with tempfile.TemporaryDirectory() as nowhere:
        present = View.of(study, Path(nowhere), past.view.folder, offline=False)
    problems = []
    for name, fact in present.facts.items():
        then, node = past.view.facts[name], past.view.nodes[name].node
        before, now = then.identity, fact.identity
        changed = [key for key in dict.fromkeys((*before, *now)) if before.get(key) != now.get(key)]
        told = fact.problem if changed or not before else None
        if changed and not told:
            told = "; ".join(f"its {key} was {before.get(key)}, and is {now.get(key)}" for key in changed)
        if told:
            problems.append(Problem(_mark(past), (node.section, name.split(".")[0]), told))
    if problems:
        raise SpecError(problems)


def _own_home(past: PastRun, into: Path | None) -> Path:
    """A home that holds nothing, or what a replay of this run left that was stopped. In the place that is ours by default a
    replay that came to its end gives way."""
    folder = (into or past.view.home / f"replay-{past.id[:8]}").resolve()
    mark = folder / UNDER_WAY
    with _writable(folder):
        if mark.exists() and json.loads(mark.read_bytes())["run"] == past.id:
            return folder
        if into is None:
            shutil.rmtree(folder, ignore_errors=True)
        elif folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
            raise UserError(
                f"{into} is not empty, and what lies there would be taken for built anew; name another --home"
            )
        folder.mkdir(parents=True, exist_ok=True)
        mark.write_text(json.dumps({"run": past.id}), encoding="utf-8")
    return folder


@contextmanager
def _writable(folder: Path) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        told = f"the replay's home {folder} cannot be written: {error.strerror}; name a folder that can by --home"
        raise UnfitError(told) from None


@contextmanager
def _alone_in(folder: Path) -> Iterator[None]:
    """Whoever ends first would take the home away from the other."""
    lock = FileLock(folder / "replay.lock")
    with _writable(folder):
        try:
            lock.acquire(blocking=False)
        except Timeout:
            raise UserError(f"another replay fills {folder}; wait for it, or name a folder by --home") from None
    try:
        yield
    finally:
        lock.release()


def _take_over(past: PastRun, folder: Path, judged: Path) -> list[str]:
    """Models that came out of a package, whose bytes are digested again, and what judges said, which was paid for. Returns the
    names of the models."""
    taken = []
    for name, step in past.view.nodes.items():
        if not is_packaged(step.node.entry):
            continue
        work = past.view.work(name)
        stored = find(past.view.home, work.kind, work.fingerprint, verify=True)
        target = folder_of(folder, work.kind, work.fingerprint)
        if stored and not target.exists():
            shutil.copytree(stored.folder, target, copy_function=_link_or_copy)
        if stored:
            taken.append(name)
    for stored in _earlier(past):
        target = folder / stored.folder.relative_to(past.view.home)
        if not target.exists():
            shutil.copytree(stored.folder, target, copy_function=_link_or_copy)
    if past.view.study.judges and judged.exists() and not verdicts.place().exists():
        with closing(sqlite3.connect(judged)) as old, closing(sqlite3.connect(verdicts.place())) as new:
            old.backup(new)
    return taken


def _earlier(past: PastRun) -> Iterator[Stored]:
    """The models of earlier runs that stages with `since` went on from, and the trained ones below them: given to this run, not
    made by it."""
    waiting = [
        (past.view.nodes[n].kind, f.identity["since"]) for n, f in past.view.facts.items() if "since" in f.identity
    ]
    while waiting:
        stored = find(past.view.home, *waiting.pop(), verify=True)
        if stored:
            yield stored
            waiting += [(i["kind"], i["fingerprint"]) for i in stored.record["inputs"] if i["kind"] in TRAINED]


def _link_or_copy(source: str, target: str) -> None:
    try:
        os.link(source, target)
    except OSError:  # another disk
        shutil.copy2(source, target)


def _tell_surroundings(display: Display, past: PastRun, found: list[Difference]) -> None:
    stages = len(past.view.planned)
    started = past.note["started"][:16].replace("T", " ")
    display.say(f"run {past.id[:8]} of {past.view.study.name}, {started} UTC")
    for one in found[:TOLD]:
        whose = "" if len(one.stages) == stages else f" ({listed(one.stages)})"
        display.console.print(f"other surroundings: {one}{whose}; {one.means}", soft_wrap=True)
    if len(found) > TOLD:
        display.console.print(f"and {len(found) - TOLD} more, which --json tells")
    if not found:
        display.console.print("the surroundings are those of the record", soft_wrap=True)


def _tell_agreement(display: Display, agreement: list[Compared], reused: list[str]) -> None:
    table = Table()
    for column in ("stage", "kind", "files identical", "metrics equal", "intervals overlap", ""):
        table.add_column(column)
    for one in agreement:
        inside = [metric.agrees for metric in one.metrics if metric.interval]
        equal = sum(metric.now == metric.then for metric in one.metrics)
        table.add_row(
            one.stage, one.kind, f"{one.files - len(one.other_files)} of {one.files}", f"{equal} of {len(one.metrics)}",
            f"{sum(inside)} of {len(inside)}" if inside else "-", WORDS[one.verdict],
        )  # fmt: skip
    display.console.print(table)
    lines = [f"{one.stage}: {name} is not the same to the bit" for one in agreement for name in one.other_files]
    for one in agreement:
        for metric in one.metrics:
            if not metric.agrees:
                span, span_now = (f" {ends(*of)}" if of else "" for of in (metric.interval, metric.interval_now))
                now = "not there" if metric.now is None else f"{metric.now:.6g}"
                lines.append(f"{one.stage}: {metric.name} was {metric.then:.6g}{span}, and is {now}{span_now}")
    for line in lines[:TOLD]:
        display.console.print(line, soft_wrap=True)
    if len(lines) > TOLD:
        display.console.print(f"and {len(lines) - TOLD} more, which --json tells")
    if reused:
        display.console.print(f"not converted anew, their digests being right: {listed(reused)}", soft_wrap=True)


def _sentence(agreement: list[Compared], apart: list[str]) -> str:
    if apart:
        return f"does not agree: {listed(apart)}"
    same = sum(one.verdict == "identical" for one in agreement)
    if same == len(agreement):
        return "the same to the bit"
    return (
        f"agrees: {same} of {len(agreement)} stages are the same to the bit, the intervals of the comparisons overlap"
    )


def _as_json(
    past: PastRun,
    found: list[Difference],
    agreement: list[Compared],
    apart: list[str],
    folder: Path | None,
    reused: list[str],
) -> dict[str, Any]:
    return {
        "run": past.id,
        "study": past.view.study.name,
        "surroundings": [asdict(one) for one in found],
        "reused_models": reused,
        "stages": [
            {**asdict(one), "metrics": [asdict(m) | {"agrees": m.agrees} for m in one.metrics], "verdict": one.verdict}
            for one in agreement
        ],
        "disagree": apart,
        "home": str(folder) if folder else None,
    }  # fmt: skip
