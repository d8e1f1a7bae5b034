"""A version in MLflow's model registry that `alignflow promote` made: what it is, and its files into the store.

A version holds its policy's plan down to the leaves, and the store's own folders of what the policy is made of: placed into
another store under their fingerprints, they are what they would be if they had been built there. External models are named,
not held. MLflow is imported when it is asked.
"""

from __future__ import annotations

import json
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from registry import facts as leaf_facts
from registry.models import CATALOGUE, packaged_fingerprint
from registry.store import RECORD, Stored, building, digest, find, publish
from specs.models import Model
from specs.plan import Fact, Step
from specs.problems import UnfitError, UserError, did_you_mean, without_password
from specs.sources import Promoted, origin, promoted
from specs.study import Study
from specs.written import read, under
from tasks.places import mlflow_problem, registry_place
from tasks.view import is_packaged

MANIFEST = "policy.json"
"""What a version says of itself: `policy` (a step's name), the `steps` below it, and the names of those that it `uses`."""

ABSENT = "RESOURCE_DOES_NOT_EXIST"
"""What MLflow says of a model or a version that there is not; all else that it refuses is no answer."""


@dataclass(frozen=True)
class Version:
    """See the module."""

    name: str
    version: str
    manifest: dict[str, Any]

    def __str__(self) -> str:
        return str(Promoted(self.name, None, self.version))

    def steps(self, name: str) -> tuple[Step, ...]:
        """What the policy was made of and, last and under `name`, itself."""
        steps, used = read(self.manifest["steps"]), set(self.manifest["uses"])
        kept = {n for n, s in steps.items() if n in used and (s.is_stage or s.held_by)}
        held = {n: replace(s, held_by=str(self) if n in kept else None) for n, s in steps.items()}
        return under(held, self.manifest["policy"], name)

    def uses(self, name: str) -> set[str]:
        """The names of the steps that the policy cannot do without, where it is called `name`."""
        return {name if n == self.manifest["policy"] else f"{name}:{n}" for n in self.manifest["uses"]}


def place_of(step: Step) -> str:
    """Where a version has the files of a step."""
    return f"{step.kind}/{step.fingerprint[:16]}"


def resolve(source: Promoted, uri: str) -> Version:
    """The version that is meant now, by the registry at `uri`. Raises `UserError` where there is none, or it is none that
    `alignflow promote` made, and `UnfitError` where MLflow does not say."""
    client = _client(uri)
    from mlflow.exceptions import MlflowException

    with _answering(uri):
        try:
            registered = client.get_registered_model(source.name)
        except MlflowException as error:
            if error.error_code != ABSENT:
                raise
            known = [model.name for model in client.search_registered_models()]
            raise UserError(
                f"there is no registered model `{source.name}` in MLflow at {_shown(uri)}{_hint(source.name, known)}"
            ) from None
    number = source.version
    if source.alias:
        aliases = registered.aliases
        if source.alias not in aliases:
            raise UserError(f"`{source.name}` has no alias `{source.alias}`{_hint(source.alias, list(aliases))}")
        number = str(aliases[source.alias])
    assert number is not None
    root = _root(client, source.name, number, uri)
    with tempfile.TemporaryDirectory() as folder:
        try:
            manifest = json.loads(_download(root, MANIFEST, Path(folder), uri).read_bytes())
            return Version(source.name, number, {key: manifest[key] for key in ("policy", "steps", "uses")})
        except (MlflowException, OSError, ValueError, KeyError, TypeError):
            told = f"version {number} of `{source.name}` was not made by `alignflow promote`, or its files are gone"
            raise UserError(f"{told} ({root}/{MANIFEST})") from None


def facts(study: Study, home: Path, *, offline: bool) -> dict[str, Fact]:
    """Of each promoted model of a study what it was made of, or why it cannot be had."""
    uri, _ = registry_place(study, home)
    found = {}
    for name, model in study.models.items():
        if origin(model.source, model.revision) == "registry":
            found[name] = _fact(name, model, uri, study.execution.gpus, home, offline)
    return found


def _fact(name: str, model: Model, uri: str, gpus: int, home: Path, offline: bool) -> Fact:
    try:
        version = resolve(promoted(model.source), uri)
        steps = version.steps(name)
    except UserError as error:
        return Fact(problem=str(error))
    kind = steps[-1].node.produces
    problem = next(lacking(steps, version.uses(name), gpus, home, offline), None)
    if kind != "language model":
        problem = f"{version} is a {kind}, which has no weights of its own to train; `alignflow serve {model.source}` serves it"
    return Fact({"version": version.version}, problem=problem, steps=() if problem else steps)


def lacking(steps: tuple[Step, ...], used: set[str], gpus: int, home: Path, offline: bool) -> Iterator[str]:
    """What a policy stands on and cannot be had here as it was then: a version names external models, and does not hold them."""
    for step in steps:
        entry = step.node.entry
        if step.name in used and isinstance(entry, Model) and is_packaged(entry):
            converted = packaged_fingerprint(CATALOGUE[entry.source], str(step.payload["facts"]["precision"]))
            if offline and find(home, "model", converted) is None:
                yield f"it stands on {entry.source}, which was not fetched yet; run once without --offline"
        elif step.name in used and step.held_by is None:
            fact = leaf_facts.look(step.node, gpus, home, Path(), offline)
            then, now = (
                {k: v for k, v in d.items() if k != "precision"} for d in (step.payload["facts"], fact.identity)
            )
            source = without_password(getattr(entry, "source", step.node.name))
            if fact.problem:
                yield f"it stands on `{source}`, which a version names and does not hold: {fact.problem}"
            elif then != now:
                yield f"it stands on `{source}`, which is not what it was when it was promoted"


ANEW = "delete that version in MLflow, and promote its policy again"
"""A promotion uses the files of a version that holds the policy already."""


def fetch(home: Path, step: Step, uri: str) -> Stored:
    """Places a step's files into the store; the caller holds its lock. Raises `UserError` where they are not what their
    record says."""
    assert step.held_by is not None
    held = promoted(step.held_by)
    assert held.version is not None
    root = _root(_client(uri), held.name, held.version, uri)
    with building(home, step.kind, step.fingerprint) as out:
        folder = _download(root, place_of(step), out.with_name(f"{out.name}.download"), uri)
        try:
            record = json.loads((folder / RECORD).read_bytes())
            files = record.pop("files")
            for name, entry in files.items():
                inside = not Path(name).is_absolute() and ".." not in Path(name).parts
                if not (inside and (folder / name).is_file() and digest(folder / name) == entry["sha256"]):
                    told = f"its file {place_of(step)}/{name} is not what was promoted"
                    raise UserError(f"{step.held_by}: {told}; {ANEW}")
                (out / name).parent.mkdir(parents=True, exist_ok=True)
                shutil.move(folder / name, out / name)
            if record.pop("fingerprint") != step.fingerprint or record.pop("kind") != step.kind:
                raise UserError(f"{step.held_by}: {place_of(step)} holds something else; {ANEW}")
        finally:
            shutil.rmtree(out.with_name(f"{out.name}.download"), ignore_errors=True)
        return publish(home, step.kind, step.fingerprint, out, record)


def fetched(home: Path, step: Step, uri: str) -> Stored:
    """As `fetch`, unless it is there already."""
    from registry.store import locked

    with locked(home, step.fingerprint):
        return find(home, step.kind, step.fingerprint) or fetch(home, step, uri)


def _client(uri: str) -> Any:
    """Raises `UserError` where no MLflow answers at once: its own client would try for minutes, and make a new database; and
    `UnfitError` where it cannot be used."""
    missing = uri.startswith("sqlite:///") and not Path(uri.removeprefix("sqlite:///")).exists()
    problem = (
        f"there is no MLflow database at {_shown(uri)}, so nothing was promoted" if missing else mlflow_problem(uri)
    )
    if problem:
        raise UserError(problem)
    from mlflow.tracking import MlflowClient

    with _answering(uri):
        return MlflowClient(tracking_uri=uri, registry_uri=uri)


def _root(client: Any, name: str, version: str, uri: str) -> str:
    """Where a version has its files. Raises as `resolve` does."""
    from mlflow.exceptions import MlflowException

    with _answering(uri):
        try:
            return str(client.get_model_version_download_uri(name, version))
        except MlflowException as error:
            if error.error_code != ABSENT:
                raise
            raise UserError(f"`{name}` has no version {version}") from None


@contextmanager
def _answering(uri: str) -> Iterator[None]:
    """Raises `UnfitError` where MLflow fails, or does not let this process in."""
    try:
        yield
    except UserError:
        raise
    except Exception as error:  # the backends raise their own: SQLAlchemy, requests, MLflow
        from tasks.tracking import brief

        told = brief(error)
        if getattr(error, "error_code", None) == "UNAUTHENTICATED":
            told = "it asks who is there; set MLFLOW_TRACKING_USERNAME and MLFLOW_TRACKING_PASSWORD"
        raise UnfitError(f"MLflow at {_shown(uri)} cannot be used: {told}") from error


def _download(root: str, path: str, into: Path, uri: str) -> Path:
    from mlflow.artifacts import download_artifacts

    into.mkdir(parents=True, exist_ok=True)
    return Path(download_artifacts(artifact_uri=f"{root}/{path}", dst_path=str(into), tracking_uri=uri))


def _hint(word: str, known: list[str]) -> str:
    return did_you_mean(word, known) or (f"; it has {', '.join(f'`{k}`' for k in known[:8])}" if known else "")


def _shown(uri: str) -> str:
    return without_password(uri)
