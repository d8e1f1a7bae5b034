"""What MLflow is told of a stage that was built: metrics, small files, generations, and what it was made of, with links along
which a reader comes from a model back to its data.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from registry.artifacts import Artifact
from registry.store import Stored
from specs.data import Data
from specs.models import Model
from tasks.evaluation_table import generations, named
from tasks.inputs import RESPONSES, read_lines
from tasks.session import Session
from tasks.view import Work

TRAINED = (
    "sft", "reward_model", "autoregressive_reward_model", "prefix_scorer", "rl", "rrhf", "raft", "dpo", "qrpo", "bond", "soup",
)  # fmt: skip
ROWS = ("sample", "label")


@dataclass(frozen=True)
class Input:
    """Something that a stage was made of."""

    slot: str
    name: str
    artifact: Artifact
    stored: Stored | None
    """None where it is given, not made."""

    @property
    def mlflow(self) -> Mapping[str, Any]:
        """The `run`, `experiment` and `model` that MLflow knows it by."""
        return self.stored.record.get("mlflow", {}) if self.stored else {}

    @property
    def line(self) -> str:
        """As Markdown; a link to where MLflow tells what it was made of itself."""
        kind, short = self.artifact.entry.kind_name, self.artifact.fingerprint[:16]
        name, run = self.name, self.mlflow.get("run")
        if run:
            name = f"[{name}](#/experiments/{self.mlflow['experiment']}/runs/{run})"
        elif isinstance(self.artifact.entry, (Data, Model)):
            name = f"{name}, given as {self.artifact.entry.source}"
        return f"- {self.slot}: {name} ({kind} `{short}`)"


def inputs(session: Session, name: str) -> list[Input]:
    """Of a stage, in the order of its slots."""
    found = []
    for slot, below in session.nodes[name].inputs:
        artifact = session.artifact(below)
        is_given = isinstance(artifact.entry, (Data, Model))
        found.append(Input(slot, below, artifact, None if is_given else session.stored(below)))
    return found


def model_entity(session: Session, work: Work, run: str) -> str | None:
    """The MLflow model of a trained artifact: its id, or None where the stage trains none."""
    if work.kind not in TRAINED:
        return None
    tags = {
        "alignflow.fingerprint": work.fingerprint,
        "alignflow.store": f"{work.kind}/{work.fingerprint[:16]}",
        "mlflow.note.content": note(session, work),
    }
    return session.tracker.model_out(run, f"{session.study.name}-{work.kind}", tags)


def note(session: Session, work: Work) -> str:
    """What MLflow shows as a run's description and a model's."""
    made_of = [below.line for below in inputs(session, work.name)]
    head = f"`{work.name}` of the study {session.study.name}"
    return "\n".join([f"{head}, made of", "", *made_of]) if made_of else head


def tell(session: Session, work: Work, stored: Stored, run: str, elapsed: float) -> None:
    """Tells MLflow of a stage whose artifact is published."""
    tracker = session.tracker
    model = stored.record["mlflow"]["model"]
    tracker.metrics(run, {**stored.record["metrics"], "seconds": elapsed}, model=model)
    tracker.files(run, stored.folder)
    _edges(session, work, run)
    if work.kind == "evaluate":
        artifact = session.artifact(work.name)
        evaluation = named(artifact)
        tracker.metrics(run, evaluation.metrics())
        tracker.table(run, list(generations(artifact, evaluation.policies, evaluation.rewards)), "generations.json")
    elif work.kind == "sample":
        tracker.table(run, list(_answers(stored)), "generations.json")


def _edges(session: Session, work: Work, run: str) -> None:
    tracker = session.tracker
    made_of: dict[str, list[str]] = {}
    for below in inputs(session, work.name):
        kind, fingerprint = below.artifact.entry.kind_name, below.artifact.fingerprint
        if isinstance(below.artifact.entry, Data):
            context = "evaluation" if work.kind == "evaluate" else "training"
            tracker.dataset_in(run, below.name, fingerprint, below.artifact.entry.source, context)
            continue
        made_of.setdefault(below.slot, []).append(f"{kind} {fingerprint[:16]}")
        if model := below.mlflow.get("model"):
            tracker.model_in(run, model)
        elif below.stored and kind in ROWS:
            tracker.dataset_in(run, below.name, fingerprint, str(below.stored.folder), "training")
    tags = {f"alignflow.input.{slot}": ", ".join(some) for slot, some in made_of.items()}
    tracker.tag(run, tags | {"mlflow.note.content": note(session, work)})


def _answers(stored: Stored) -> Iterator[dict[str, Any]]:
    for row in read_lines(stored.folder / RESPONSES):
        for answer in row["responses"]:
            told = {"response": answer["text"], "tokens": answer["tokens"], "finished": answer["finished"]}
            yield {"prompt": row["prompt"][-1]["content"], **told}
