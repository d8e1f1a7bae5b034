"""A study's stages built one by one in the test's own process: each body is called as its child process calls it."""

from __future__ import annotations

import dataclasses
import gc
import importlib
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file

from registry.artifacts import Artifact
from specs.execution import Execution
from specs.load import load
from tasks.bodies import BODIES
from tasks.job import Event, Job, Log
from tasks.view import View


@dataclass(frozen=True)
class Built:
    """A stage that was built: what later stages are given, what it measured, and what it said meanwhile."""

    artifact: Artifact
    metrics: dict[str, float]
    events: list[Event]

    @property
    def folder(self) -> Path:
        assert self.artifact.folder is not None
        return self.artifact.folder

    def logged(self, name: str) -> list[tuple[int, float]]:
        """`(step, value)` of every report of a metric."""
        reports = [content for kind, content in self.events if kind == "metrics"]
        return [(step, values[name]) for step, values in reports if name in values]

    def finished(self, what: str) -> list[int]:
        """The totals of the counts of `what` that came to their end, in order."""
        counts = [content for kind, content in self.events if kind == "progress"]
        return [total for done, total, counted in counts if counted == what and done == total]


def study(folder: Path, stages: str, head: str = "seed: 3") -> View:
    """A study as the flow sees it; `./` in its text is `folder`."""
    torch.set_num_threads(1)  # tiny models are slower on more
    gc.freeze()  # bodies collect garbage between models; what is imported need not be looked through each time
    # Python rewards lie beside their study, and those of other tests are not to be found.
    sys.path[:] = [str(folder), *(p for p in sys.path if not Path(p, "study.yaml").exists())]
    path = folder / "study.yaml"
    path.write_text(f"version: 1\nname: small\n{head}\n{stages}".replace("./", f"{folder}/"))
    return View.of(load(path).study, folder / "home", folder, offline=True)


def build(view: View, name: str, into: Path | None = None, **execution: Any) -> Built:
    """Builds a stage whose inputs are built, in the store's place for it or in the folder `into`."""
    artifact = view.artifact(name)
    out = into or artifact.folder
    assert out is not None
    out.mkdir(parents=True)
    events: list[Event] = []
    module, function = BODIES[artifact.entry.kind_name].split(":")
    scratch = out.with_name(f"{out.name}.scratch")
    job = Job(artifact, out, scratch, Execution(**{"threads": 1} | execution), Log(events.append))
    result = getattr(importlib.import_module(module), function)(job)
    return Built(dataclasses.replace(artifact, folder=out), result.metrics, events)


def weights(built: Built) -> dict[str, torch.Tensor]:
    (path,) = built.folder.rglob("*.safetensors")
    return load_file(path)


def apart(one: Built, other: Built) -> float:
    """How far the weights of two models are from each other at most."""
    ours, theirs = weights(one), weights(other)
    assert ours.keys() == theirs.keys()
    return max(float((ours[name] - theirs[name]).abs().max()) for name in ours)
