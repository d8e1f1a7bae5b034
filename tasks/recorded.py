"""The study that stands in an artifact's record, and the artifact again as that study knows it.

A fingerprint tells what was built but not how to build it: names and paths are no identity. So the record keeps the study as
it was, with `${env:}` as it was written.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from registry.artifacts import Artifact
from registry.store import Stored, find
from specs.graph import Graph
from specs.problems import UserError
from specs.study import Study, entries
from tasks.continuing import pinned
from tasks.view import View

MODELS = ("from", "previous", "since", "experts")
"""The slots of what a trained model was trained from."""


def written(view: View) -> dict[str, Any]:
    """The whole study, an alias as the version that it meant, and the folder that its Python rewards lie in."""
    spec = view.study.model_dump(mode="json", by_alias=True, exclude_unset=True)
    for name, since in pinned(view.study, view.facts).items():
        spec["stages"][name]["since"] = since
    for name, model in spec.get("models", {}).items():
        model["source"] = view.nodes[name].held_by or model["source"]
    return {"spec": spec, "folder": str(view.folder)}


def snapshot(view: View, stage: str) -> dict[str, Any]:
    """What a record says of the study: the study, and the stage's name in it."""
    return {**written(view), "stage": stage}


def study_of(stored: Stored) -> tuple[Study, Path, str]:
    """The study, its folder, and the name that the artifact had in it. Raises `UserError` where the record has none that
    can be read."""
    if "study" not in stored.record:
        raise UserError(f"{stored.folder} was built before records held their study; build it anew")
    kept = stored.record["study"]
    return read(kept, f"{stored.folder} was built"), Path(kept["folder"]), str(kept["stage"])


def read(kept: Mapping[str, Any], since: str) -> Study:
    """The study of what `written` gave, but for its schedule, whose times may all be over. Raises `UserError` where it is none any
    more; `since` says when it was one."""
    try:
        return Study.model_validate({key: value for key, value in kept["spec"].items() if key != "schedule"})
    except ValidationError as error:
        told = f"the language has changed since {since}, and its study is none any more"
        raise UserError(f"{told}: {error.errors()[0]['msg']}") from None


def model_of(home: Path, kind: str, fingerprint: str) -> Artifact:
    """A trained model, with the models that it was trained from and nothing else: the rows that it learnt from may have changed
    since. Raises `UserError` where one of those models is not there as it was."""
    stored = find(home, kind, fingerprint)
    if stored is None:
        raise UserError(f"the {kind} {fingerprint[:16]} is gone from the store")
    study, folder, stage = study_of(stored)
    view = View.of(study, home, folder, offline=True)
    node = view.nodes[stage].node
    names = iter(name for _, name in Graph(entries(study)).inputs(stage))
    below: dict[str, list[Artifact]] = {}
    for made_of in stored.record["inputs"]:
        slot, its_kind, its_print = made_of["slot"], made_of["kind"], made_of["fingerprint"]
        name = "" if slot == "since" else next(names)
        if slot not in MODELS:
            continue
        if its_kind != "model":
            below.setdefault(slot, []).append(model_of(home, its_kind, its_print))
        elif view.nodes[name].fingerprint == its_print:
            below.setdefault(slot, []).append(view.artifact(name))
        else:
            told = view.facts[name].problem or "it is not what it was"
            raise UserError(f"{stored.folder} cannot be used as it was built: models.{name}: {told}")
    return Artifact(
        name=stage,
        entry=node.entry,
        payload=stored.record["payload"],
        fingerprint=fingerprint,
        produces=node.produces,
        folder=stored.folder,
        inputs={slot: tuple(some) for slot, some in below.items()},
    )
