"""Where a study's results come from: data and what was dropped of them, models, stages with their costs, environment, replay."""

from __future__ import annotations

import json
import shlex
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from markupsafe import Markup

from flows.page import bullets, folded, joined, paragraph, section, table, words
from flows.wording import duration, measured
from specs.data import Data
from specs.problems import without_password
from tasks.inputs import DROPPED
from tasks.view import View

Records = Mapping[str, Mapping[str, Any]]


def lineage(view: View, records: Records) -> Markup:
    """What was given, what was made of it, and how it hangs together."""
    stages = [_stage_row(view, name, records.get(name)) for name in view.planned]
    spent = sum(record["provenance"]["seconds"] for record in records.values())
    total = f"{len(records)} of {len(stages)} stages are built; building them took {duration(spent)} in all."
    columns = ("stage", "kind", "made of", "fingerprint", "time", "result", "finished (UTC)")
    parts = [
        table(("data", "source", "rows", "read by", "dropped"), list(_data_rows(view)), "data")
        if _named(view, "data")
        else "",
        table(("model", "source", "pinned by"), list(_model_rows(view)), "models") if view.study.models else "",
        paragraph(total),
        table(columns, stages, "stages"),
        folded("The same as a tree: each stage above what it was made of", _tree(view)),
    ]
    return section("Data, models and stages", *parts, anchor="lineage")


def _named(view: View, part: str) -> list[str]:
    return [name for name, step in view.nodes.items() if step.node.section == part]


def _stage_row(view: View, name: str, record: Mapping[str, Any] | None) -> list[Any]:
    step = view.nodes[name]
    made_of = words(", ".join(dict.fromkeys(child for _, child in step.inputs)))
    if record is None:
        return [name, step.kind, made_of, step.fingerprint[:16], "not built", "", ""]
    found = words(measured({k: v for k, v in record["metrics"].items() if not k.startswith("test/")}))
    provenance = record["provenance"]
    took, finished = duration(provenance["seconds"]), provenance["finished"][:16].replace("T", " ")
    return [name, record["kind"], made_of, record["fingerprint"][:16], took, found, finished]


def _data_rows(view: View) -> Iterator[list[Any]]:
    for name in _named(view, "data"):
        step = view.nodes[name]
        entry = step.node.entry
        assert isinstance(entry, Data)
        readers, dropped = [], []
        for reader, slot in ((n, slot) for n, s in view.nodes.items() for slot, child in s.inputs if child == name):
            readers.append(reader)
            stored = view.stored(reader) if view.nodes[reader].is_stage else None
            path = stored.folder / DROPPED if stored else None
            found = json.loads(path.read_bytes()).get(slot) if path and path.exists() else None
            if found:
                why = ", ".join(f"{reason} {count}" for reason, count in found["dropped"].items())
                dropped.append(f"{sum(found['dropped'].values())} of {found['read']} ({why})")
        rows = (entry.split or {}).get(step.node.part or "", entry.rows)
        pinned = f" at {entry.revision[:12]}" if entry.revision else ""
        yield [
            name,
            words(f"{without_password(entry.source)}{pinned}, {entry.format}"),
            f"{rows:,}" if rows else "all",
            words(", ".join(dict.fromkeys(readers)) or "none"),
            words("; ".join(dict.fromkeys(dropped)) or "none"),
        ]


def _model_rows(view: View) -> Iterator[list[Any]]:
    for name, entry in view.study.models.items():
        facts = {"revision": entry.revision} if entry.revision else {}
        pinned = ", ".join(f"{k} {str(v)[:16]}" for k, v in (facts | dict(view.facts[name].identity)).items())
        yield [name, words(without_password(entry.source)), words(pinned)]


def _tree(view: View) -> Markup:
    """From what nothing was made of down to what was given. What stands higher up is not told twice."""
    used = {child for step in view.nodes.values() for _, child in step.inputs}
    told: set[str] = set()

    def branch(name: str, slot: str) -> Markup:
        step = view.nodes[name]
        inputs = list(dict.fromkeys((child, slot) for slot, child in step.inputs))
        above = name in told and bool(inputs)
        told.add(name)
        line = Markup("{}<b>{}</b> <small>{}{}</small>").format(
            Markup("<small>{}:</small> ").format(slot) if slot else "", name, step.kind, ", see above" if above else ""
        )
        below = [branch(child, key) for child, key in inputs] if not above else []
        return Markup("{}{}").format(line, bullets(below) if below else "")

    return bullets([branch(name, "") for name in view.planned if name not in used], "tree")


def environment(view: View, records: Records) -> Markup:
    """What it ran on, and the commands that build it again."""
    origins = [record["provenance"] for record in records.values()]
    newest = max(origins, key=lambda origin: origin["finished"])
    packages = ", ".join(f"{name} {version}" for name, version in newest["packages"].items())
    told = {
        "Seed": str(view.study.seed),
        "Code": "; ".join(_distinct(_commit(origin) for origin in origins)),
        "Device": "; ".join(_distinct(f"{o['device']}, {o['threads']} threads" for o in origins)),
        "Processor": "; ".join(_distinct(_processor(o) for o in origins)),
        "System": "; ".join(_distinct(f"{o['platform']} ({o['host']})" for o in origins)),
        "Packages": packages,
    }
    items = joined([Markup("<dt>{}</dt><dd>{}</dd>").format(key, text) for key, text in told.items()])
    return joined([
        section("Environment", Markup("<dl>{}</dl>").format(items), anchor="environment"),
        section("How to run it again", *_replay(view.study.name, newest), anchor="replay"),
    ])  # fmt: skip


def _distinct(texts: Iterator[str]) -> Sequence[str]:
    return list(dict.fromkeys(texts))


def _processor(origin: Mapping[str, Any]) -> str:
    machine = origin.get("machine") or {}
    return ", ".join([*machine.get("gpus", ()), machine.get("processor", "not recorded")])


def _commit(origin: Mapping[str, Any]) -> str:
    code = origin["code"]
    if not code.get("commit"):
        return "no checkout"
    return f"{code['commit'][:12]}{' with uncommitted changes' if code.get('dirty') else ''}"


def _replay(study: str, newest: Mapping[str, Any]) -> Iterator[Markup]:
    """The commands: beside the records, and elsewhere from the study's file."""
    asked = newest.get("command") or []
    arguments = asked[asked.index("run") + 1 :] if "run" in asked else ["STUDY.yaml"]
    file = shlex.join(map(without_password, arguments))
    commit = newest["code"].get("commit")
    code = [f"git checkout {commit}"] if commit else []
    pinned = [
        f"{name}=={newest['packages'][name].partition('+')[0]}"  # a local version (`+cpu`) is on no index
        for name in ("torch", "transformers", "trl", "peft")
        if name in newest["packages"]
    ]
    before = [*code, f"pip install {' '.join(pinned)}"] if pinned else code
    yield _commands(*before, f"alignflow replay {study}")
    yield paragraph(
        "Where the records are, a replay builds everything anew in a home folder of its own, tells first what surrounds it otherwise "
        "(packages, processor, threads), and then which files are the same to the bit and of which numbers the intervals overlap. "
        "Elsewhere, with the data and models where the study names them:"
    )
    yield _commands(*before, f"alignflow plan {file}", f"alignflow run {file}")
    yield paragraph(
        "The plan shows the fingerprints of the table above where study, data and models are the same. On a processor of the same "
        "kind, with the same versions and threads, the numbers are the same to the bit."
    )
    if newest["code"].get("dirty"):
        yield paragraph("The code had changes that no commit holds, so the commit alone may not give these results.")


def _commands(*lines: str) -> Markup:
    return Markup("<pre tabindex=0>{}</pre>").format("\n".join(lines))
