"""A study whose artifacts are written by hand: what shows, reports or collects them needs no model and no server."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from types import SimpleNamespace
from typing import Any

from registry.home import make_home
from registry.store import Stored, building, publish
from specs.load import load
from tasks.recorded import snapshot
from tasks.view import View

STUDY = """\
version: 1
name: small
seed: 3
models:
  base: {source: smollm2-135m-instruct, precision: fp32}
data:
  prompts: {source: quickstart-eval, format: prompt, split: {train: 6, eval: 2}}
rewards:
  gold: {kind: length}
  tone: {kind: lexicon}
stages:
  rolls: {do: sample, from: base, prompts: prompts.train, samples: 2}
  pairs: {do: label, responses: rolls, reward: gold}
  sft: {do: sft, from: base, data: pairs}
  bon: {do: decode, method: best_of_n, from: base, reward: gold, sweep: {n: [2, 4]}}
  table: {do: evaluate, policies: [base, sft, bon], against: base, prompts: prompts.eval, rewards: [gold, tone]}
"""
PROVENANCE = {
    "packages": {"python": "3.11.0", "torch": "2.9.0"},
    "code": {"commit": "0123456789abcdef", "dirty": True},
    "host": "workbench",
    "platform": "Linux",
    "device": "cpu",
    "threads": 2,
    "seconds": 12.34,
    "finished": "2026-11-21T10:11:12.131415+00:00",
}


def view(folder: Path, text: str = STUDY) -> View:
    """The study as `show`, `report` and a run see it, with its home in `folder`."""
    path = folder / "s.yaml"
    path.write_text(text, encoding="utf-8")
    return View.of(load(path).study, make_home(), folder, offline=False)


def put(
    study: View, name: str, files: Mapping[str, str], metrics: Mapping[str, float] | None = None, **provenance: Any
) -> Stored:
    """Publishes a stage's artifact or a packaged model's, as the task that builds it would; `provenance` is told otherwise."""
    work = study.work(name)
    inputs = [
        {"slot": slot, "kind": study.nodes[i].kind, "fingerprint": study.nodes[i].fingerprint}
        for slot, i in study.nodes[name].inputs
    ]
    record = {
        "payload": work.payload, "inputs": inputs, "metrics": dict(metrics or {}), "provenance": PROVENANCE | provenance,
        "study": snapshot(study, name), "mlflow": {"run": f"run-of-{work.kind}"},
    }  # fmt: skip
    with building(study.home, work.kind, work.fingerprint) as out:
        for file, content in files.items():
            (out / file).write_text(content, encoding="utf-8")
        return publish(study.home, work.kind, work.fingerprint, out, record)


def lines(*rows: Mapping[str, Any]) -> str:
    return "".join(json.dumps(row) + "\n" for row in rows)


def end(study: View, run: str = "0123abcd" * 4) -> None:
    """Leaves what a run leaves at its end: its note, a link to each artifact, and the payloads for the next plan."""
    from flows import past_runs
    from tasks.session import Session  # imports MLflow

    tracker: Any = SimpleNamespace(parent=run)
    session = Session(**vars(study), tracker=tracker, tags={}, observe=lambda *_: None, claim=None)  # type: ignore[arg-type]
    past_runs.begin(session)
    past_runs.end(session, {name: "done" if study.stored(name) else "failed" for name in study.planned})
    for name in study.planned:
        if stored := study.stored(name):
            session.finished(name, stored)
    session.remember()
