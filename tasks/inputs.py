"""What a slot's artifact holds, as rows: prompts, preference pairs, sampled responses."""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

from registry import data
from registry.rows import Pair, Prompt, reasons
from specs.data import Data
from tasks.job import Job

RESPONSES = "responses.jsonl"
PAIRS = "pairs.jsonl"
SAMPLES = "samples.jsonl"
"""What a stage drew for itself, and what became of each."""
ROUND = "round.json"
"""What a round of RAFT leaves to the next."""
TRAINING = "training.jsonl"
DROPPED = "dropped.json"
UNIFORMITY = "uniformity.json"


def prompts_of(job: Job, slot: str) -> list[Prompt]:
    """The prompts of a data set; those of preference pairs each once."""
    if job.one(slot).produces == "preference pairs":
        return once(Prompt(pair.prompt) for pair in pairs_of(job, slot))
    return list(_rows(job, slot))


def distinct_prompts_of(job: Job, slot: str) -> list[Prompt]:
    """Each prompt once, where it is the unit: of what is counted, or of an interval."""
    prompts = prompts_of(job, slot)
    found = once(prompts)
    if lost := len(prompts) - len(found):
        job.log.note(f"{job.one(slot).name}: {lost} of {len(prompts)} prompts repeat one before, and are asked once")
    return found


def once(prompts: Iterable[Prompt]) -> list[Prompt]:
    """Each prompt once, in the order of their first coming."""
    return list({prompt.id: prompt for prompt in prompts}.values())


def pairs_of(job: Job, slot: str) -> list[Pair]:
    """The pairs of a data set or of a `label` stage."""
    artifact = job.one(slot)
    if isinstance(artifact.entry, Data):
        return list(_rows(job, slot))
    assert artifact.folder is not None
    return [
        Pair(tuple(row["prompt"]), row["chosen"], row["rejected"], row["chosen_finished"], row["rejected_finished"])
        for row in read_lines(artifact.folder / PAIRS)
    ]


def _rows(job: Job, slot: str) -> tuple[Any, ...]:
    """The rows of a data set. What was dropped of it is said, and kept with what the stage makes."""
    artifact = job.one(slot)
    entry = artifact.entry
    assert isinstance(entry, Data)
    rows = data.read(entry, artifact.part, f"data.{artifact.name}")
    if rows.dropped:
        lost = sum(rows.dropped.values())
        job.log.note(f"data.{artifact.name}: {lost} of {rows.read} rows dropped: {reasons(rows)}")
        path = job.out / DROPPED
        before = json.loads(path.read_bytes()) if path.exists() else {}
        here = {"read": rows.read, "dropped": dict(rows.dropped)}
        path.write_text(json.dumps(before | {slot: here}, indent=1), encoding="utf-8")
    return rows.rows


def dropped_rows(out: Path) -> dict[str, float]:
    """How many rows each slot's data lost, as metrics."""
    path = out / DROPPED
    found = json.loads(path.read_bytes()) if path.exists() else {}
    return {f"dropped_rows/{slot}": float(sum(f["dropped"].values())) for slot, f in found.items()}


def read_lines(path: Path) -> Iterator[Any]:
    """The rows of a JSON Lines file of ours."""
    with path.open(encoding="utf-8") as file:
        yield from map(json.loads, file)


def write_lines(path: Path, rows: list[dict[str, Any]]) -> None:
    with path.open("w", encoding="utf-8") as file:
        file.writelines(json.dumps(row, ensure_ascii=False, allow_nan=False) + "\n" for row in rows)
