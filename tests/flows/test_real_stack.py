"""A study of a person's against the servers of a team, whose passwords must not show anywhere."""

from __future__ import annotations

import json
import re
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from servers import Servers, until, whole
from small_study import STUDY, TABLE, make_folder

pytestmark = [pytest.mark.slow, pytest.mark.timeout(600)]


def start(
    servers: Servers, folder: Path, name: str, spec: str = "s.yaml", **environment: str
) -> subprocess.Popen[bytes]:
    """`alignflow run`, what it prints going to the files `<name>.out` and `<name>.err`."""
    with (folder / f"{name}.out").open("wb") as out, (folder / f"{name}.err").open("wb") as err:
        command = [sys.executable, "-m", "flows.cli", "run", spec, "--json"]
        return subprocess.Popen(command, cwd=folder, env=servers.environment(**environment), stdout=out, stderr=err)


def ended(process: subprocess.Popen[bytes], folder: Path, name: str) -> dict[str, Any]:
    assert process.wait(280) == 0, (folder / f"{name}.err").read_text()
    return json.loads((folder / f"{name}.out").read_text())


@pytest.fixture(scope="module")
def ran(servers: Servers, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, dict[str, Any]]:
    folder = make_folder(tmp_path_factory.mktemp("run"), STUDY + TABLE)
    return folder, ended(start(servers, folder, "first"), folder, "first")


def record(folder: Path, stage: str) -> dict[str, Any]:
    return json.loads((folder / ".alignflow" / "studies" / "small" / stage / "record.json").read_text())


def runs(servers: Servers, parent: str) -> tuple[Any, Any, dict[str, Any]]:
    """The client, a run, and its children by stage."""
    client = servers.client()
    run = client.get_run(parent)
    found = client.search_runs([run.info.experiment_id], f"tags.mlflow.parentRunId = '{parent}'")
    children = [client.get_run(child.info.run_id) for child in found]
    assert len({c.data.tags["alignflow.stage"] for c in children}) == len(children)
    return client, run, {c.data.tags["alignflow.stage"]: c for c in children}


def given(client: Any, note: str) -> set[str]:
    """What a reader comes to who follows the links of a description, and of the pages that they lead to."""
    found = {line.rpartition(" (")[0] for line in note.splitlines() if ", given as " in line}
    for run in re.findall(r"\(#/experiments/\d+/runs/(\w+)\)", note):
        found |= given(client, client.get_run(run).data.tags["mlflow.note.content"])
    return found


def states(servers: Servers, outcome: dict[str, Any]) -> dict[str, str]:
    """What Prefect calls the state of each of the run's tasks; it comes to know some of it after the run ended."""
    _, parent, _ = runs(servers, outcome["mlflow"]["run"])
    only = {"flow_runs": {"id": {"any_": [parent.data.tags["prefect.flow_run_id"]]}}}

    def told() -> dict[str, str]:
        return {t["name"]: t["state_name"] for t in servers.ask("task_runs/filter", only)}

    names = set(outcome["stages"])
    until(lambda: set(told()) == names and not set(told().values()) & {"Pending", "Running"}, 30)
    return told()


def test_a_study_runs_and_prefect_shows_its_stages(servers: Servers, ran: tuple[Path, dict[str, Any]]) -> None:
    _, outcome = ran
    assert outcome["stages"] == dict.fromkeys(["rolls", "pairs", "rm", "bon", "table"], "done")
    assert (outcome["failed"], outcome["untracked"]) == ({}, [])
    assert states(servers, outcome) == dict.fromkeys(outcome["stages"], "Completed")


def test_mlflow_holds_the_runs_their_files_and_their_lineage(
    servers: Servers, ran: tuple[Path, dict[str, Any]]
) -> None:
    folder, outcome = ran
    client, parent, children = runs(servers, outcome["mlflow"]["run"])
    assert (parent.info.status, {c.info.status for c in children.values()}) == ("FINISHED", {"FINISHED"})
    assert set(children) == set(outcome["stages"])
    model = record(folder, "rm")["mlflow"]["model"]
    assert [m.model_id for m in children["rm"].outputs.model_outputs] == [model]
    assert [m.model_id for m in children["table"].inputs.model_inputs] == [model]
    assert client.get_logged_model(model).source_run_id == children["rm"].info.run_id
    names = {stage: [d.dataset.name for d in c.inputs.dataset_inputs] for stage, c in children.items()}
    assert names == {
        "rolls": ["prompts.train"],
        "pairs": ["rolls"],
        "rm": ["pairs"],
        "bon": [],
        "table": ["prompts.eval"],
    }
    entity = client.get_logged_model(model)
    assert entity.tags["mlflow.note.content"] == children["rm"].data.tags["mlflow.note.content"]
    assert {metric.key for metric in entity.metrics} >= {"pairs", "seconds"}
    come_to = given(client, entity.tags["mlflow.note.content"])
    assert any(line.startswith("- prompts: prompts.train, given as ") for line in come_to), come_to
    assert children["rm"].data.metrics["pairs"] == record(folder, "pairs")["metrics"]["pairs"]
    for run, file in ((parent, "report.html"), (parent, "spec.yaml"), (children["table"], "generations.json")):
        assert file in {f.path for f in client.list_artifacts(run.info.run_id)}
        assert list(servers.artifacts.rglob(f"{run.info.run_id}/artifacts/{file}"))


def test_a_second_run_is_cached_and_points_at_the_first(servers: Servers, ran: tuple[Path, dict[str, Any]]) -> None:
    folder, _ = ran
    outcome = ended(start(servers, folder, "second"), folder, "second")
    assert states(servers, outcome) == dict.fromkeys(outcome["stages"], "Cached")
    _, parent, children = runs(servers, outcome["mlflow"]["run"])
    assert children == {}
    for stage in outcome["stages"]:
        assert parent.data.tags[f"alignflow.cached.{stage}"] == record(folder, stage)["mlflow"]["run"]


def test_no_password_is_shown_however_it_was_given(servers: Servers, ran: tuple[Path, dict[str, Any]]) -> None:
    folder, outcome = ran
    assert outcome["mlflow"]["uri"].startswith("http://admin:***@")
    assert outcome["mlflow"]["url"].startswith(servers.mlflow)  # a link that a browser follows
    # The same study once more, the database named directly: by the study, the password by the environment.
    address = servers.database("mlflow")
    direct = elsewhere(servers, folder, address, "direct")
    assert ended(direct, folder, "direct")["mlflow"]["uri"] == address.render_as_string(hide_password=True)
    assert json.loads((folder / "direct.out").read_text())["untracked"] == []
    assert elsewhere(servers, folder, address.set(database="nowhere"), "nowhere").wait(60) == 4
    (line,) = [t for t in (folder / "nowhere.err").read_text().splitlines() if t.startswith("environment: ")]
    assert 'database "nowhere" does not exist' in line
    places = (folder, servers.artifacts)
    files = [p for place in places for p in place.rglob("*") if p.is_file() and not p.is_symlink()]
    for secret in servers.secrets.values():
        assert [p for p in files if secret.encode() in p.read_bytes()] == []
        assert servers.tables_with(secret) == set()
    assert servers.tables_with("small") >= {"artifact", "flow_run", "tags", "runs"}  # the search does find


def elsewhere(servers: Servers, folder: Path, address: Any, name: str) -> subprocess.Popen[bytes]:
    password = str(address.password)
    uri = whole(address).replace(password, "${env:DATABASE_PASSWORD}")
    text = f"tracking: {{experiment: direct, uri: '{uri}'}}\n"
    (folder / f"{name}.yaml").write_text(STUDY + TABLE + text)
    return start(servers, folder, name, spec=f"{name}.yaml", DATABASE_PASSWORD=password)


@pytest.fixture(scope="module")
def killed(servers: Servers, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder in which a run was killed while it built `pairs`. Its reward still holds on."""
    folder = make_folder(tmp_path_factory.mktemp("killed"), STUDY.replace("name: small", "name: stopped"))
    (folder / "hold").touch()
    run = start(servers, folder, "killed")
    try:
        until(lambda: list(folder.glob("scoring.*")) or run.poll() is not None)
    finally:
        run.kill()
    assert run.wait(30) == -signal.SIGKILL
    return folder


def test_a_run_that_is_killed_leaves_no_process_and_no_half_an_artifact(killed: Path) -> None:
    (mark,) = killed.glob("scoring.*")
    until(lambda: not alive(int(mark.suffix[1:])), 30)
    store = killed / ".alignflow" / "store"
    assert [p.name for p in store.iterdir() if list(p.glob("[!.]*"))] == ["sample"]
    assert list(store.glob("sample/*/record.json"))
    assert not list(store.glob("label/*/record.json"))


def alive(process: int) -> bool:
    try:
        return Path(f"/proc/{process}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except OSError:
        return False


def test_two_runs_at_once_go_on_where_it_stopped_and_build_each_stage_once(servers: Servers, killed: Path) -> None:
    for mark in killed.glob("scoring.*"):
        mark.unlink()
    pair = {name: start(servers, killed, name) for name in ("one", "other")}

    def one_waits_for_the_other() -> bool:
        told = "".join((killed / f"{name}.err").read_text() for name in pair)
        return "pairs: another process is building it" in told and any(killed.glob("scoring.*"))

    try:
        until(lambda: one_waits_for_the_other() or any(p.poll() is not None for p in pair.values()))
        assert one_waits_for_the_other()
    finally:
        (killed / "hold").unlink()
    outcomes = [ended(process, killed, name) for name, process in pair.items()]
    assert [o["stages"].pop("rolls") for o in outcomes] == ["cached", "cached"]
    for stage in ("pairs", "rm", "bon"):
        assert sorted(o["stages"][stage] for o in outcomes) == ["cached", "done"], stage
    assert len(list(killed.glob("scoring.*"))) == 1
    children = [stage for o in outcomes for stage in runs(servers, o["mlflow"]["run"])[2]]
    assert sorted(children) == ["bon", "pairs", "rm"]
    store = killed / ".alignflow" / "store"
    assert len(list(store.glob("*/*/record.json"))) == 4
    assert not list(store.rglob("*.building"))
