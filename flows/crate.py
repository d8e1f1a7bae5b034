"""A past run as an RO-Crate: one folder or zip that holds what a reviewer asks for, described in JSON-LD after the profile
Provenance Run Crate 0.5 (https://w3id.org/ro/wfrun/provenance/0.5).

The study is the workflow, each stage a step of it and an action with its inputs, outputs, times and software. Records, metrics,
tables, generations, report and figures are in the crate; data and models that were given are named by their digests, and so are
weights unless they are asked for.
"""

from __future__ import annotations

import hashlib
import json
import shutil
from collections.abc import Iterable, Iterator, Mapping
from datetime import datetime
from io import StringIO
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any
from urllib.parse import quote

from rocrate.model import ComputationalWorkflow, ComputerLanguage, ContextEntity
from rocrate.rocrate import ROCrate
from ruamel.yaml import YAML

from flows.past_runs import PastRun, past_run
from flows.report import write_report
from registry import environments
from registry.home import home
from registry.provenance import PACKAGES
from registry.store import RECORD, Stored, digest, disk_errors
from specs.problems import UserError, without_password

PROFILES = {
    "https://w3id.org/ro/wfrun/process/0.5": "Process Run Crate",
    "https://w3id.org/ro/wfrun/workflow/0.5": "Workflow Run Crate",
    "https://w3id.org/ro/wfrun/provenance/0.5": "Provenance Run Crate",
    "https://w3id.org/workflowhub/workflow-ro-crate/1.0": "Workflow RO-Crate",
}
TERMS = "https://w3id.org/ro/terms/workflow-run/context"
"""Where `sha256` and the like are defined."""
FORMATS = {
    ".json": "application/json", ".jsonl": "application/jsonl", ".html": "text/html", ".svg": "image/svg+xml",
    ".csv": "text/csv", ".md": "text/markdown", ".jinja": "text/plain", ".yaml": "application/yaml",
    ".safetensors": "application/octet-stream",
}  # fmt: skip
_README = """\
# Run {run} of the study {study}

`study.yaml` is the study as it ran, the stages of sweeps and rounds written out, and `alignflow run` takes it as it stands; `run.json`
what was noted of the run: digests of what was given, fingerprints of stages.
`stages/` has what each stage made, with a `record.json` of how (inputs, digests, metrics, packages, processor, command, times);
`environments/` every package that was installed and the changes to AlignFlow's code that no commit holds; `report/` the report, its
figures and their numbers. `ro-crate-metadata.json` says how all of it hangs together. What is not here (data, models, weights) is named
there by its sha256.

Where the run was made, `alignflow replay {run}` builds it anew and compares.
"""
NO_LICENCE = "The study states none; ask whoever ran it."


def export(asked: str, target: Path, *, weights: bool) -> Path:
    """Writes the crate of a run to the folder or `.zip` file `target`. Raises `UserError`."""
    past = past_run(asked, home())
    stored = {name: past.stored(name) for name in past.view.planned}
    place = target.resolve()  # `.` has no name of its own
    with TemporaryDirectory() as temporary, disk_errors(place):
        if place.exists() and (place.suffix == ".zip" or not place.is_dir() or any(place.iterdir())):
            raise UserError(f"{target} is there already; name another, or remove it")
        if not place.parent.is_dir():
            raise UserError(f"there is no folder {place.parent} to write {place.name} into")
        report = Path(temporary)
        write_report(past.view, report)
        crate = _Crate(past, stored, weights).whole(report).crate
        unfinished = place.with_name(f".{place.name}.unfinished{place.suffix}")
        _remove(unfinished)  # of an export that was interrupted
        if place.suffix == ".zip":
            crate.write_zip(unfinished)
        else:
            crate.write(unfinished)
        if place.is_dir():  # it is empty, and stays: it may be the folder that the person is in
            for part in [*unfinished.iterdir()]:
                shutil.move(part, place / part.name)
            unfinished.rmdir()
        else:
            unfinished.rename(place)
    return target


def _remove(path: Path) -> None:
    if path.is_dir():
        shutil.rmtree(path)
    else:
        path.unlink(missing_ok=True)


class _Crate:
    def __init__(self, past: PastRun, stored: Mapping[str, Stored], weights: bool):
        self.past, self.stored, self.weights = past, stored, weights
        self.crate = ROCrate(version="1.1")
        self.crate.metadata.extra_contexts.append(TERMS)

    def whole(self, report: Path) -> _Crate:
        """Adds everything; `report` is the folder that it was drawn in."""
        note, study = self.past.note, self.past.view.study
        root = self.crate.root_dataset
        self.crate.name = f"Run {self.past.id[:8]} of the study {study.name}"
        self.crate.description = f"What was asked, built and found by the AlignFlow study {study.name}"
        self.crate.license = NO_LICENCE
        root["conformsTo"] = [
            self._entity(url, "CreativeWork", name=name, version=url.rpartition("/")[2])
            for url, name in PROFILES.items()
        ]
        engine = self._engine()
        leaves = {name: self._leaf(name, fact) for name, fact in note["leaves"].items()}
        workflow = self._workflow()
        built = {name: self._outputs(name, stored) for name, stored in self.stored.items()}
        tools, steps, controls, actions = {}, [], [], []
        for position, (name, stored) in enumerate(self.stored.items()):
            kind = stored.record["kind"]
            if kind not in tools:
                tools[kind] = self._entity(
                    f"#tool-{kind}",
                    "SoftwareApplication",
                    name=f"AlignFlow's stage {kind}",
                    softwareVersion=self._version(),
                )
            step = self._entity(
                f"#step-{_id(name)}", "HowToStep", name=name, position=str(position), workExample=tools[kind]
            )
            action = self._action(name, stored, tools[kind], [*self._inputs(name, leaves, built)], built[name])
            steps.append(step)
            actions.append(action)
            controls.append(
                self._entity(
                    f"#control-{_id(name)}", "ControlAction", name=f"Ran {name}", instrument=step, object=action
                )
            )
        workflow["step"], workflow["hasPart"] = steps, list(tools.values())
        files = [self._file(path, f"report/{path.name}", digest(path)) for path in sorted(report.iterdir())]
        readme = self._text("README.md", _README.format(study=study.name, run=self.past.id), "What lies where")
        readme["about"] = root
        note_file = self._text(
            "run.json", json.dumps(note, indent=1), "The run as it was noted: study, leaves, fingerprints"
        )
        times = _times(note)
        run = self._entity(
            "#run", "CreateAction", name=f"The run {self.past.id}", instrument=workflow, object=list(leaves.values()),
            result=[*(one for some in built.values() for one in some), *files], identifier=self.past.id, subjectOf=note_file,
            description=" ".join(note["command"]), **times,
        )  # fmt: skip
        organised = self._entity(
            "#organised",
            "OrganizeAction",
            name="Prefect's flow run",
            instrument=engine,
            object=controls,
            result=run,
            **times,
        )
        root["mentions"] = [organised, run, *actions]
        return self

    def _workflow(self) -> Any:
        stream = StringIO()
        YAML().dump(self.past.note["study"]["spec"] | {"spread": False}, stream)
        language = self.crate.add(
            ComputerLanguage(self.crate, "#language", properties={"name": "AlignFlow study", "version": "1"})
        )
        text = stream.getvalue()
        properties: dict[str, Any] = _described("study.yaml", _sha(text)) | {
            "name": self.past.view.study.name,
            "version": "1",
        }
        properties["@type"] = ["File", "SoftwareSourceCode", "ComputationalWorkflow", "HowTo"]
        return self.crate.add_workflow(
            StringIO(text), "study.yaml", properties=properties, main=True, lang=language, cls=ComputationalWorkflow,
            record_size=True,
        )  # fmt: skip

    def _engine(self) -> Any:
        newest = max((s.record["provenance"] for s in self.stored.values()), key=lambda origin: str(origin["finished"]))
        needed = [
            self._entity(
                f"https://pypi.org/project/{name}/",
                "SoftwareApplication",
                name=name,
                softwareVersion=newest["packages"][name],
                url=f"https://pypi.org/project/{name}/",
            )
            for name in PACKAGES
            if name in newest["packages"] and name != "alignflow"
        ]
        return self._entity(
            "#alignflow",
            "SoftwareApplication",
            name="AlignFlow",
            softwareVersion=self._version(),
            softwareRequirements=needed,
            runtimePlatform=f"Python {newest['packages'].get('python')}",
        )

    def _version(self) -> str:
        version = next(iter(self.stored.values())).record["provenance"]["packages"].get("alignflow", "?")
        commit = self.past.note["code"].get("commit")
        return f"{version} ({commit})" if commit else str(version)

    def _leaf(self, name: str, fact: Mapping[str, Any]) -> Any:
        """What was given: not in the crate, and named by what pins it."""
        node = self.past.view.nodes[name].node
        told = {what: getattr(node.entry, what, None) for what in ("source", "target", "base_url", "revision")}
        pinned = {what: without_password(value) for what, value in told.items() if value} | fact["identity"]
        text = ", ".join(f"{what} {value}" for what, value in pinned.items())
        more = {"sha256": pinned["sha256"]} if "sha256" in pinned else {}
        return self._entity(
            f"#given-{_id(name)}", "CreativeWork", name=name, description=text or node.entry.kind_name,
            additionalType=node.section, **more,
        )  # fmt: skip

    def _outputs(self, name: str, stored: Stored) -> list[Any]:
        """A stage's files; weights only where they are asked for."""
        made = []
        for file, entry in stored.record["files"].items():
            place = f"stages/{name}/{file}"
            if file.endswith(".safetensors") and not self.weights:
                made.append(self._entity(
                    f"#weights-{_id(place)}", "CreativeWork", name=f"{name}: {file}", sha256=entry["sha256"],
                    contentSize=str(entry["bytes"]), description="Not in this crate",
                ))  # fmt: skip
            else:
                made.append(self._file(stored.folder / file, place, entry["sha256"]))
        return made

    def _inputs(self, name: str, leaves: Mapping[str, Any], built: Mapping[str, list[Any]]) -> Iterator[Any]:
        for below in dict.fromkeys(i for _, i in self.past.view.nodes[name].inputs):
            yield from built[below] if below in built else [leaves[below]]

    def _action(self, name: str, stored: Stored, tool: Any, inputs: Iterable[Any], outputs: Iterable[Any]) -> Any:
        origin = stored.record["provenance"]
        record = self._file(stored.folder / RECORD, f"stages/{name}/{RECORD}", digest(stored.folder / RECORD))
        kept = [record]
        place = self.past.view.home / environments.FOLDER / f"{origin.get('environment')}.json"
        if place.exists():
            kept.append(self._file(place, f"environments/{place.name}", digest(place)))
        machine = origin.get("machine", {})
        on = machine.get("gpus") or [machine.get("processor", origin["platform"])]
        return self._entity(
            f"#build-{_id(name)}", "CreateAction", name=f"Built {name}", instrument=tool, object=list(inputs),
            result=list(outputs), subjectOf=kept, identifier=stored.record["fingerprint"],
            actionStatus="http://schema.org/CompletedActionStatus",
            description=f"{origin['seconds']} s with {origin['threads']} threads on {', '.join(on)}",
            environment=[
                self._entity(f"#variable-{key}-{_sha(value)[:8]}", "PropertyValue", name=key, value=value)
                for key, value in machine.get("variables", {}).items()
            ], **_times(origin),
        )  # fmt: skip

    def _entity(self, identifier: str, kind: str, /, **properties: Any) -> Any:
        told = {
            key: value[0] if isinstance(value, list) and len(value) == 1 else value for key, value in properties.items()
        }
        told = {"@type": kind, **{key: value for key, value in told.items() if value != []}}
        return self.crate.get(identifier) or self.crate.add(ContextEntity(self.crate, identifier, properties=told))

    def _file(self, source: Path, place: str, sha256: str) -> Any:
        return self.crate.get(quote(place)) or self.crate.add_file(
            source, place, properties=_described(place, sha256), record_size=True
        )

    def _text(self, place: str, text: str, description: str) -> Any:
        properties = _described(place, _sha(text)) | {"description": description}
        return self.crate.add_file(StringIO(text), place, properties=properties, record_size=True)


def _times(told: Mapping[str, Any]) -> dict[str, str]:
    """Of a note or of a record, to the second."""
    named = {"startTime": told.get("started"), "endTime": told.get("finished")}
    return {name: datetime.fromisoformat(time).isoformat(timespec="seconds") for name, time in named.items() if time}


def _described(place: str, sha256: str) -> dict[str, str]:
    kind = FORMATS.get(Path(place).suffix)
    return {"name": place.rpartition("/")[2], "sha256": sha256} | ({"encodingFormat": kind} if kind else {})


def _sha(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()


def _id(name: str) -> str:
    return quote(name, safe="")
