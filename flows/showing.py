"""`alignflow show`: where a study or one of its stages stands, from the store alone."""

from __future__ import annotations

import json
from typing import Any

from flows.wording import measured
from registry.home import study_folder
from specs.problems import UserError, did_you_mean
from tasks.view import View


def show_study(view: View, as_json: bool) -> str:
    """Every stage: state, fingerprint, time, main metrics."""
    stages = []
    for name, planned in view.planned.items():
        stored = view.stored(name)
        record = stored.record if stored else {}
        stages.append({
            "name": name,
            "kind": planned.step.kind,
            "state": planned.state,
            "fingerprint": planned.step.fingerprint,
            "folder": str(stored.folder) if stored else None,
            "seconds": record.get("provenance", {}).get("seconds"),
            "metrics": record.get("metrics", {}),
        })  # fmt: skip
    if as_json:
        return json.dumps({"study": view.study.name, "stages": stages}, indent=1)
    width = max(map(len, view.planned))
    lines = [f"{view.study.name}  ({study_folder(view.home, view.study.name)})"]
    for s in stages:
        state = "stored" if s["state"] == "cached" else view.planned[s["name"]].why
        metrics = measured(dict(list(s["metrics"].items())[:4]))
        seconds = f"{s['seconds']:.1f} s" if s["seconds"] is not None else ""
        lines.append(f"  {s['name']:{width}}  {s['fingerprint'][:16]}  {state:24}  {seconds:>9}  {metrics}")
    return "\n".join(lines)


def show_stage(view: View, name: str, as_json: bool) -> str:
    """One stage: its files, metrics, provenance, what it was made of and what is made of it."""
    if name not in view.planned:
        hint = did_you_mean(name, view.planned) or f"; there are {', '.join(view.planned)}"
        raise UserError(f"`{view.study.name}` has no stage `{name}`{hint}")
    step = view.planned[name].step
    stored = view.stored(name)
    below = [{"slot": slot, "name": i, "fingerprint": view.nodes[i].fingerprint} for slot, i in step.inputs]
    above = [n for n, s in view.nodes.items() if name in [i for _, i in s.inputs]]
    found: dict[str, Any] = {
        "name": name,
        "kind": step.kind,
        "fingerprint": step.fingerprint,
        "state": view.planned[name].state,
        "made_of": below,
        "used_by": above,
        "folder": str(stored.folder) if stored else None,
        "record": stored.record if stored else None,
    }
    if as_json:
        return json.dumps(found, indent=1)
    lines = [f"{name}: {step.kind} {step.fingerprint[:16]}, {found['state']} ({view.planned[name].why})"]
    lines += [f"  made of  {b['slot']}: {b['name']} {b['fingerprint'][:16]}" for b in below]
    lines += [f"  used by  {a}" for a in above]
    if stored:
        provenance = stored.record["provenance"]
        lines.append(f"  folder   {stored.folder}")
        lines += [f"  file     {f}  {e['bytes']:,} bytes" for f, e in stored.record["files"].items()]
        lines += [f"  metric   {k}  {v:.6g}" for k, v in stored.record["metrics"].items()]
        lines.append(
            f"  built    {provenance['finished'][:19]} UTC in {provenance['seconds']:.1f} s on {provenance['host']}"
        )
        lines.append(f"  MLflow   run {stored.record.get('mlflow', {}).get('run')}")
    return "\n".join(lines)
