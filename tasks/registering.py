"""A policy into MLflow's model registry: its files, a version, an alias; all of it, or nothing.

How each step is undone is put down before it is taken: a step whose answer was lost has been taken too. (Prefect's
transactions undo only what is known to have been done.) The alias moves last, so nobody ever reads half a promotion.
"""

from __future__ import annotations

import json
import re
import secrets
import tempfile
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from mlflow.entities import LoggedModelOutput
from mlflow.exceptions import MlflowException

from registry.artifacts import Artifact
from registry.store import find, folder_of
from specs.graph import Node
from specs.plan import Step
from specs.problems import UnfitError, UserError
from specs.rewards import PythonReward
from specs.sources import Promoted, promoted
from specs.stage import Stage
from specs.written import write
from tasks.tracking import Tracker, brief
from tasks.versions import MANIFEST, place_of
from tasks.view import ROWS, View

FINGERPRINT = "alignflow.fingerprint"
MODEL = "alignflow.model"
"""The model in MLflow that holds a version's files; a version forgets its `model_id`."""
PROMOTION = "alignflow.promotion"
"""A version's tag: by it the version is found again by whoever made it and never heard its number."""


@dataclass(frozen=True)
class Registered:
    """A version that an alias means."""

    name: str
    version: str
    alias: str
    is_new: bool
    before: str | None
    """The version that the alias meant before."""

    def __str__(self) -> str:
        return f"{Promoted(self.name, self.alias, None)} is version {self.version}"


def check_names(name: str, alias: str) -> None:
    """Raises `UserError` for what MLflow would refuse, or no source could name."""
    if re.fullmatch(r"latest|v[0-9]+", alias, re.IGNORECASE):
        raise UserError(f"--alias {alias}: MLflow keeps `latest` and `v1`, `v2`, ... for itself; name another")
    try:
        promoted(str(Promoted(name, alias, None)))
    except ValueError:
        told = "a name has letters, digits, ` `, `.`, `-` and `_`, an alias letters, digits, `-` and `_`"
        raise UserError(f"`{name}` and `{alias}` cannot be a registered model's name and alias: {told}") from None


def used(policy: Artifact) -> list[Artifact]:
    """The policy and what it cannot answer without: below a trained model the model that it was trained on, and not what
    taught it; below a decoding rule, a calibrated reward or a sum of rewards all of it but rows."""
    found: dict[str, Artifact] = {}
    waiting = [policy]
    while waiting:
        here = waiting.pop()
        if here.fingerprint in found or here.produces in ROWS:
            continue
        found[here.fingerprint] = here
        if isinstance(here.entry, Stage) and here.entry.kind_name not in ("decode", "calibrate"):
            waiting.append(here.start)
        else:
            waiting += [one for some in here.inputs.values() for one in some]
    return list(found.values())


@dataclass(frozen=True)
class Content:
    """What a version of a policy holds."""

    policy: str
    steps: dict[str, Step]
    """The policy and all that it was made of, inputs first."""
    uses: list[str]

    @property
    def files(self) -> list[Step]:
        """The steps whose folders it holds."""
        return [self.steps[n] for n in self.uses if self.steps[n].is_stage or self.steps[n].held_by]

    def manifest(self) -> dict[str, Any]:
        return {"policy": self.policy, "steps": write(self.steps.values()), "uses": self.uses}


def content(view: View, policy: str) -> Content:
    """Raises `UserError` where a policy is made of what no version can hold, or the store does not."""
    prints = {artifact.fingerprint for artifact in used(view.artifact(policy))}
    below = view.below(policy) | {policy}
    steps: dict[str, Step] = {}
    for name, step in view.nodes.items():
        if name in below:
            since = view.artifact(name).inputs.get("since", ())
            inputs = [(slot, i) for slot, i in step.inputs if slot != "since"]
            steps[name] = replace(step, inputs=(*inputs, *(("since", _laid(one, name, steps)) for one in since)))
    found = Content(policy, steps, [name for name, step in steps.items() if step.fingerprint in prints])
    for name in found.uses:
        if isinstance(steps[name].node.entry, PythonReward):
            raise UserError(
                f"`{policy}` asks `{name}`, whose code lies beside the study: a version of a model cannot hold it"
            )
    missing = [step.name for step in found.files if find(view.home, step.kind, step.fingerprint) is None]
    if missing:
        raise UserError(f"`{policy}` is made of what is not stored: {', '.join(missing)}; run the study first")
    return found


def _laid(artifact: Artifact, above: str, steps: dict[str, Step]) -> str:
    """The name of the step that an earlier run's model is, put among the steps with those below it."""
    known = next((name for name, step in steps.items() if step.fingerprint == artifact.fingerprint), None)
    if known is not None:
        return known
    name = f"{above}:{artifact.name}"
    inputs = [(slot, _laid(one, name, steps)) for slot, some in artifact.inputs.items() for one in some]
    section = "stages" if isinstance(artifact.entry, Stage) else "models"
    node = Node(name, section, artifact.entry, artifact.produces, artifact.part)
    steps[name] = Step(name, node, artifact.entry.kind_name, tuple(inputs), artifact.payload, artifact.fingerprint)
    return name


def meant(tracker: Tracker, name: str, alias: str) -> Any:
    """The version that the alias means now, or None."""
    try:
        return tracker.client.get_model_version_by_alias(name, alias)
    except MlflowException as error:
        if error.error_code in ("RESOURCE_DOES_NOT_EXIST", "INVALID_PARAMETER_VALUE"):
            return None
        raise


def register(
    tracker: Tracker, view: View, policy: str, name: str, alias: str, tags: Mapping[str, str], description: str
) -> Registered:
    """Makes a version of the policy and has the alias mean it. Where the alias means this policy already, nothing is done; where
    another version holds it, its files are used again. Raises `UserError` (see `content`), and `UnfitError` where MLflow
    fails: then all is as it was before."""
    held = content(view, policy)
    fingerprint = view.nodes[policy].fingerprint
    with _as_one(tracker) as undo:
        before = meant(tracker, name, alias)
        if before is not None and before.tags.get(FINGERPRINT) == fingerprint:
            return Registered(name, str(before.version), alias, False, str(before.version))
        _register_name(tracker, name, undo)
        model, source, run = _files(tracker, view, held, name, undo)
        mark = {FINGERPRINT: fingerprint, MODEL: model, PROMOTION: secrets.token_hex(8)}
        undo("the new version", lambda: _drop_version(tracker, name, mark, model))
        made = tracker.client.create_model_version(
            name, source, run_id=run, tags={**tags, **mark}, description=description, model_id=model
        )
        _mention(tracker, model, name, str(made.version))
        undo("the alias", lambda: _alias_back(tracker, name, alias, str(made.version), before))
        tracker.client.set_registered_model_alias(name, alias, str(made.version))
    return Registered(name, str(made.version), alias, True, str(before.version) if before else None)


Undo = Callable[[str, Callable[[], None]], None]


@contextmanager
def _as_one(tracker: Tracker) -> Iterator[Undo]:
    """What fails inside is undone, last first. Raises `UnfitError` for MLflow's faults, with what could not be undone."""
    taken: list[tuple[str, Callable[[], None]]] = []
    try:
        yield lambda what, how: taken.append((what, how))
    except BaseException as error:
        left = []
        for what, how in reversed(taken):
            try:
                how()
            except Exception as fault:  # the next is to be undone all the same
                left.append(f"{what} ({brief(fault)})")
        if isinstance(error, UserError | UnfitError) or not isinstance(error, Exception):
            raise
        outcome = f"not undone: {', '.join(left)}" if left else "versions and aliases are as they were"
        raise UnfitError(f"nothing was promoted: MLflow at {tracker.uri} failed ({brief(error)}); {outcome}") from error


def _register_name(tracker: Tracker, name: str, undo: Undo) -> None:
    try:
        tracker.client.get_registered_model(name)
    except MlflowException as error:
        if error.error_code != "RESOURCE_DOES_NOT_EXIST":
            raise
        undo("the new registered model", lambda: _drop_name(tracker, name))
        tracker.client.create_registered_model(name)


def _drop_name(tracker: Tracker, name: str) -> None:
    if not _versions(tracker, name):  # another promotion may have used it meanwhile
        tracker.client.delete_registered_model(name)


def _versions(tracker: Tracker, name: str) -> list[Any]:
    return list(tracker.client.search_model_versions(f"name = '{name}'"))


def _files(tracker: Tracker, view: View, held: Content, name: str, undo: Undo) -> tuple[str, str, str]:
    """MLflow's model that holds the files, put there where no version has them yet: its id, its place, the run it came from."""
    fingerprint = held.steps[held.policy].fingerprint
    for version in _versions(tracker, name):
        if version.tags.get(FINGERPRINT) == fingerprint and MODEL in version.tags:
            return version.tags[MODEL], version.source, version.run_id
    model = _model(tracker, view, held.policy, undo)
    for step in held.files:
        folder = folder_of(view.home, step.kind, step.fingerprint)
        tracker.client.log_model_artifacts(model.model_id, str(folder), place_of(step))
    with tempfile.TemporaryDirectory() as place:
        path = Path(place) / MANIFEST
        path.write_text(json.dumps(held.manifest()), encoding="utf-8")
        tracker.client.log_model_artifact(model.model_id, str(path))
    return model.model_id, model.artifact_location, model.source_run_id or _own_run(tracker, held.policy, undo)


def _model(tracker: Tracker, view: View, policy: str, undo: Undo) -> Any:
    """The model that the policy's run made in MLflow, with its lineage; where there is none, as of a decoding rule, a new one."""
    stored = view.stored(policy)
    record = stored.record.get("mlflow", {}) if stored else {}
    try:
        return tracker.client.get_logged_model(record["model"])
    except (KeyError, TypeError, MlflowException):  # MLflow takes no None for an id
        pass
    run = _run(tracker, record.get("run"))
    made = tracker.client.create_logged_model(
        tracker.experiment_id,
        name=f"{view.study.name}-{view.nodes[policy].kind}",
        source_run_id=run,
        model_type="alignflow",
    )
    undo("the new model", lambda: tracker.client.delete_logged_model(made.model_id))
    if run:
        tracker.client.log_outputs(run, [LoggedModelOutput(made.model_id, 0)])
    return tracker.client.finalize_logged_model(made.model_id, "READY")


def _own_run(tracker: Tracker, policy: str, undo: Undo) -> str:
    """A run for a version whose policy was built under another MLflow. (Of a version with a model and no run MLflow asks
    whatever database is the process's default.)"""
    run = str(tracker.client.create_run(tracker.experiment_id, run_name=f"promote {policy}").info.run_id)
    undo("the new run", lambda: tracker.client.delete_run(run))
    tracker.client.set_terminated(run)
    return run


def _run(tracker: Tracker, run: str | None) -> str | None:
    """The run, where this MLflow knows it."""
    try:
        return str(tracker.client.get_run(run).info.run_id) if run else None
    except MlflowException:
        return None


MENTIONS = "mlflow.modelVersions"
"""By this tag the page of a model in MLflow leads to its versions. A server sets it by itself, a database does not."""


def _mention(tracker: Tracker, model: str, name: str, version: str) -> None:
    mentioned = json.loads(tracker.client.get_logged_model(model).tags.get(MENTIONS, "[]"))
    if not any(m["name"] == name and str(m["version"]) == version for m in mentioned):
        mentioned.append({"name": name, "version": int(version)})
        tracker.client.set_logged_model_tags(model, {MENTIONS: json.dumps(mentioned)})


def _drop_version(tracker: Tracker, name: str, mark: Mapping[str, str], model: str) -> None:
    for version in _versions(tracker, name):
        if version.tags.get(PROMOTION) == mark[PROMOTION]:
            tracker.client.delete_model_version(name, version.version)
            mentioned = json.loads(tracker.client.get_logged_model(model).tags.get(MENTIONS, "[]"))
            rest = [m for m in mentioned if (m["name"], str(m["version"])) != (name, str(version.version))]
            tracker.client.set_logged_model_tags(model, {MENTIONS: json.dumps(rest)})


def _alias_back(tracker: Tracker, name: str, alias: str, version: str, before: Any) -> None:
    now = meant(tracker, name, alias)
    if now is None or str(now.version) != version:
        return  # it was not moved, or another has moved it since
    if before is None:
        tracker.client.delete_registered_model_alias(name, alias)
    else:
        tracker.client.set_registered_model_alias(name, alias, str(before.version))
