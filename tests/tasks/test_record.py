"""A record tells how an artifact came to be: what it was made of by name, when and in which attempt, and with what."""

from __future__ import annotations

from datetime import datetime
from pathlib import Path

import handmade

from tasks.job import Result
from tasks.record import Record

STUDY = handmade.STUDY.replace(
    "rewards:\n",
    "rewards:\n  both: {kind: weighted, of: {gold: 0.5, mine: 0.5}}\n  mine: {kind: python, target: mine:score}\n",
).replace("reward: gold}", "reward: both}", 1)


def test_it_begins_before_the_build_and_names_all_that_was_given(tmp_path: Path, home: Path) -> None:
    (tmp_path / "mine.py").write_text("def score(prompts, responses):\n    return [0.0 for _ in responses]\n")
    view = handmade.view(tmp_path, STUDY)
    scratch, out = tmp_path / "scratch", tmp_path / "out"
    for folder in (scratch / "checkpoints", out):
        folder.mkdir(parents=True)
    fresh = Record(view, view.work("pairs"), scratch, 1)
    (scratch / "checkpoints" / "state").write_text("half")
    again = Record(view, view.work("pairs"), scratch, 2)
    machine = {"processor": "Abacus"}
    first, second = (
        record.end(Result({"pairs": 3.0}, machine), out, 1.23456, {"host_bytes": 2}) for record in (fresh, again)
    )
    assert [(r["provenance"]["attempt"], r["provenance"]["resumed"]) for r in (first, second)] == [
        (1, False),
        (2, True),
    ]
    origin = first["provenance"]
    assert (origin["machine"], origin["seconds"]) == (machine, 1.235)
    assert datetime.fromisoformat(origin["started"]) < datetime.fromisoformat(origin["finished"])
    assert (home / "environments" / f"{origin['environment']}.json").exists()
    assert [(i["slot"], i["name"]) for i in first["inputs"]] == [("responses", "rolls"), ("reward", "both")]
    assert list(first["leaves"]) == ["both", "gold", "mine"]
    assert first["leaves"]["mine"] == {"target": "mine:score", "sha256": view.facts["mine"].identity["sha256"]}
    assert first["metrics"] == {"pairs": 3.0}
    assert origin["foreseen"] == {"host_bytes": 2}
