"""A study beside its store: every node as the artifact it is or will be. Imports neither Prefect nor MLflow."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from registry import facts as leaf_facts
from registry import vocabularies
from registry.artifacts import Artifact
from registry.home import study_folder
from registry.models import CATALOGUE, packaged_fingerprint
from registry.store import Stored, find, folder_of
from specs.models import Model
from specs.plan import Fact, Planned, Step, plan, steps
from specs.problems import Path as SpecPath
from specs.sources import origin
from specs.stage import Stage
from specs.study import Study
from tasks import continuing, room

LAST = "last.json"
ROWS = ("responses", "preference pairs", "prompts")


@dataclass(frozen=True)
class Work:
    """What a task builds: its place in the store and the payload of its identity."""

    name: str
    kind: str
    fingerprint: str
    payload: Mapping[str, Any]


@dataclass
class View:
    """See the module."""

    study: Study
    home: Path
    folder: Path
    """The spec's folder, where Python rewards may lie."""
    nodes: dict[str, Step]
    facts: dict[str, Fact]
    planned: dict[str, Planned]
    _artifacts: dict[str, Artifact] = field(default_factory=dict, repr=False, kw_only=True)

    @classmethod
    def of(
        cls,
        study: Study,
        home: Path,
        folder: Path,
        *,
        offline: bool,
        forced: frozenset[str] = frozenset(),
        as_it_was: bool = False,
    ) -> View:
        """Looks at the leaves and at the store, and plans the next run; or (`as_it_was`) sees what the last completed one
        made, which is another thing where a stage goes on `since` it."""
        facts = leaf_facts.gather(study, home, folder, offline=offline)
        if any(origin(model.source, model.revision) == "registry" for model in study.models.values()):
            from tasks import versions  # only such a study asks MLflow

            facts |= versions.facts(study, home, offline=offline)
        return cls.given(study, home, folder, facts | continuing.facts(study, home, as_it_was=as_it_was), forced)

    @classmethod
    def given(
        cls, study: Study, home: Path, folder: Path, facts: dict[str, Fact], forced: frozenset[str] = frozenset()
    ) -> View:
        """The same where it is known what the leaves are, or were."""
        planned = plan(
            study,
            facts,
            lambda step: find(home, step.kind, step.fingerprint) is not None,
            last_payloads(home, study.name).get,
            forced,
        )
        return cls(study, home, folder, steps(study, facts), facts, {p.step.name: p for p in planned})

    def work(self, name: str) -> Work:
        step = self.nodes[name]
        if isinstance(step.node.entry, Model):
            packaged = CATALOGUE[step.node.entry.source]
            precision = str(step.payload["facts"]["precision"])
            return Work(name, "model", packaged_fingerprint(packaged, precision), step.payload)
        return Work(name, step.kind, step.fingerprint, step.payload)

    def stored(self, name: str) -> Stored | None:
        """What the store has of a stage or packaged model."""
        work = self.work(name)
        return find(self.home, work.kind, work.fingerprint)

    def problems(self) -> list[tuple[SpecPath, str]]:
        """What of the study's leaves cannot be had, and what is wrong with the rows that a stage to be built reads,
        each at the field that names it; of sound ones, where a model has no room to answer them."""
        found = leaf_facts.problems(self.study, self.facts)
        unstored = [name for name, planned in self.planned.items() if planned.state != "cached"]
        asked = set(self.judges(unstored))
        found = [(path, text) for path, text in found if path[0] != "judges" or path[1] in asked]
        found += self.foreign_guides()
        told = {path[:2] for path, _ in found}
        rows = leaf_facts.row_problems(self.study, {i for name in self.to_build() for i in self.below(name)})
        found += [(path, text) for path, text in rows if path[:2] not in told]
        return found or list(room.problems(self))

    def foreign_guides(self) -> list[tuple[SpecPath, str]]:
        """Guides that cannot read the tokens of the policy that they guide."""
        return list(vocabularies.problems(self.study, self.home))

    def to_build(self) -> list[str]:
        """The stages that a run would build."""
        return [name for name, planned in self.planned.items() if planned.state == "run"]

    def judges(self, stages: Iterable[str]) -> list[str]:
        """The judges that some of the stages ask."""
        return list(dict.fromkeys(i for name in stages for slot, i in self.nodes[name].inputs if slot == "judges"))

    def to_fetch(self) -> list[str]:
        """The packaged and promoted models that the run needs and the store lacks."""
        needed = {i for name in self.to_build() for i in self._read_by(name)}
        fetched = (
            n for n, step in self.nodes.items() if n in needed and (step.held_by or is_packaged(step.node.entry))
        )
        return [name for name in fetched if self.stored(name) is None]

    def missing(self, name: str) -> list[str]:
        """What a policy is made of and the store lacks."""
        made = [n for n in sorted({*self._read_by(name), name}) if self.nodes[n].node.produces != "decoding rule"]
        return [n for n in made if self._is_kept(self.nodes[n]) and self.stored(n) is None]

    def check_leaves(self, name: str) -> None:
        """Raises `UserError` if a file that the stage reads has changed since the plan was made."""
        leaf_facts.check_unchanged(self.study, self.facts, self._read_by(name), self.home, self.folder)

    def _read_by(self, name: str) -> set[str]:
        """What a stage is built of itself. Of rows that a stage made it reads the rows; of a trained model its weights
        and the model below, not the rows it was trained on."""
        seen: set[str] = set()
        waiting = [child for _, child in self.nodes[name].inputs]
        while waiting:
            step = self.nodes[waiting.pop()]
            if step.name not in seen and step.node.produces not in ROWS:
                waiting += [child for _, child in step.inputs if self.nodes[child].node.produces not in ROWS]
            seen.add(step.name)
        return seen

    def below(self, name: str) -> set[str]:
        """Everything that a node is made of."""
        seen: set[str] = set()
        stack = [name]
        while stack:
            for _, child in self.nodes[stack.pop()].inputs:
                if child not in seen:
                    seen.add(child)
                    stack.append(child)
        return seen

    def artifact(self, name: str) -> Artifact:
        """A node as what the stages that refer to it are given. Two ways to one node meet in one artifact."""
        if name not in self._artifacts:
            self._artifacts[name] = self._made(self.nodes[name])
        return self._artifacts[name]

    def _is_kept(self, step: Step) -> bool:
        """Whether the store has a place for it."""
        return step.is_stage or step.held_by is not None or is_packaged(step.node.entry)

    def _made(self, step: Step) -> Artifact:
        name = step.name
        by_slot: dict[str, list[Artifact]] = {}
        for slot, child in step.inputs:
            by_slot.setdefault(slot, []).append(self.artifact(child))
        from tasks.recorded import model_of  # which makes views itself

        since = step.payload["facts"].get("since")
        if since and "since" not in by_slot:  # a promoted model brings it along
            by_slot["since"] = [model_of(self.home, step.kind, since)]
        folder = None
        if self._is_kept(step) or isinstance(step.node.entry, Stage):
            work = self.work(name)
            folder = folder_of(self.home, work.kind, work.fingerprint)
        return Artifact(
            name=name.split(".")[0] if step.node.part else name,
            entry=step.node.entry,
            payload=step.payload,
            fingerprint=step.fingerprint,
            produces=step.node.produces,
            part=step.node.part,
            folder=folder,
            inputs={slot: tuple(some) for slot, some in by_slot.items()},
        )


def is_packaged(entry: Any) -> bool:
    """Whether this is a catalogue model that a package carries."""
    if not isinstance(entry, Model) or entry.via != "package":
        return False
    return origin(entry.source, entry.revision) == "catalogue"


def last_payloads(home: Path, study: str) -> dict[str, Any]:
    """The payloads that the study's stages had when they last finished, by name."""
    try:
        loaded = json.loads((study_folder(home, study) / LAST).read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    return loaded if isinstance(loaded, dict) else {}
