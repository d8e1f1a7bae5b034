"""What MLflow is told, in a real database: a tree of runs, whole values or none, and no work lost to its faults."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from mlflow.tracking import MlflowClient

from specs.problems import UnfitError
from tasks.tracking import MAX_ARTIFACT_BYTES, MAX_TABLE_ROWS, Tracker, end_runs


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of the database, one for all tests: to make one takes seconds."""
    return tmp_path_factory.mktemp("mlflow") / "home"


@pytest.fixture
def opened(place: Path) -> Callable[..., Tracker]:
    def made(experiment: str) -> Tracker:
        place.mkdir(exist_ok=True)
        return Tracker(f"sqlite:///{place}/mlflow.db", experiment, place.parent / "artifacts")

    return made


@pytest.fixture
def tracker(opened: Callable[..., Tracker], request: pytest.FixtureRequest) -> Tracker:
    made = opened(request.node.name)
    made.start_parent("small", {"alignflow.study": "small"}, {"name": "small", "seed": 3})
    return made


def names(tracker: Tracker, run: str, folder: str | None = None) -> list[str]:
    return sorted(file.path for file in tracker.client.list_artifacts(run, folder))


def params(tracker: Tracker, values: dict[str, Any]) -> dict[str, str]:
    run = tracker.start_child("stage", {}, values)
    found: dict[str, str] = tracker.client.get_run(run).data.params
    return found


def test_a_study_is_a_tree_of_runs(tracker: Tracker) -> None:
    first = tracker.start_child("rolls 0123", {"alignflow.stage": "rolls"}, {"kind": "sample", "samples": 4})
    second = tracker.start_child("rm 4567", {"alignflow.stage": "rm"}, {"kind": "reward_model"})
    tracker.metrics(first, {"responses": 32})
    tracker.metrics(second, {"train/loss": 0.7}, step=1)
    tracker.metrics(second, {"train/loss": 0.5}, step=2)
    tracker.tag(second, {"note": "x" * 6000})
    for run, status in ((first, "FINISHED"), (second, "FAILED"), (tracker.parent, "KILLED")):
        tracker.finish(run, status)

    parent = tracker.client.get_run(tracker.parent)
    assert (parent.info.run_name, parent.info.status) == ("small", "KILLED")
    assert parent.data.tags["alignflow.study"] == "small"
    assert names(tracker, tracker.parent) == ["spec.json", "spec.yaml"]
    query = f"tags.mlflow.parentRunId = '{tracker.parent}'"
    children = {r.info.run_id: r for r in tracker.client.search_runs([tracker.experiment_id], query)}
    assert {run: r.info.run_name for run, r in children.items()} == {first: "rolls 0123", second: "rm 4567"}
    assert [children[run].info.status for run in (first, second)] == ["FINISHED", "FAILED"]
    assert children[first].data.metrics == {"responses": 32.0}
    assert children[first].data.params == {"kind": "sample", "samples": "4"}
    history = tracker.client.get_metric_history(second, "train/loss")
    assert [(m.step, m.value) for m in history] == [(1, 0.7), (2, 0.5)]
    assert len(children[second].data.tags["note"]) == 5000
    assert tracker.lost == []


def test_parameters_are_whole_or_not_there(tracker: Tracker) -> None:
    """MLflow takes 6,000 characters and would cut longer ones without a word."""
    values = {
        "from": "base", "lora": {"rank": 4, "inner": {"deep": 0.5}}, "test": None, "policies": ["a", "b"],
        "flag": True, "just": "x" * 6000, "over": "y" * 6001,
    }  # fmt: skip
    assert params(tracker, values) == {
        "from": "base", "lora.rank": "4", "lora.inner.deep": "0.5", "policies": '["a", "b"]', "flag": "true",
        "just": "x" * 6000,
    }  # fmt: skip
    assert len(params(tracker, {f"p{i}": i for i in range(150)})) == 100
    assert tracker.lost == []


def test_more_metrics_than_a_request_takes_all_arrive(tracker: Tracker) -> None:
    run = tracker.start_child("stage", {}, {})
    tracker.metrics(run, {f"m{i}": i for i in range(1001)})
    assert len(tracker.client.get_run(run).data.metrics) == 1001


def test_a_table_has_its_first_rows_and_an_empty_one_is_none(tracker: Tracker) -> None:
    run = tracker.start_child("stage", {}, {})
    tracker.table(run, [], "empty.json")
    tracker.table(run, [{"response": f"[{i}] <b>"} for i in range(MAX_TABLE_ROWS + 1)], "generations.json")
    assert names(tracker, run) == ["generations.json"]
    table = json.loads(Path(tracker.client.download_artifacts(run, "generations.json")).read_text())
    assert len(table["data"]) == MAX_TABLE_ROWS
    assert table["data"][-1] == [f"[{MAX_TABLE_ROWS - 1}] <b>"]


def test_small_files_are_copied_where_they_lie_and_weights_are_not(tracker: Tracker, tmp_path: Path) -> None:
    (tmp_path / "adapter").mkdir()
    (tmp_path / "adapter" / "adapter_config.json").write_text("{}")
    (tmp_path / "adapter" / "adapter_model.safetensors").write_bytes(b"weights")
    (tmp_path / "training.jsonl").write_text("{}\n")
    with (tmp_path / "large.jsonl").open("wb") as file:
        file.truncate(MAX_ARTIFACT_BYTES + 1)
    run = tracker.start_child("stage", {}, {})
    tracker.files(run, tmp_path)
    assert names(tracker, run) == ["adapter", "training.jsonl"]
    assert names(tracker, run, "adapter") == ["adapter/adapter_config.json"]


def test_edges_lead_from_data_and_models_to_what_was_made_of_them(tracker: Tracker) -> None:
    maker, user = (tracker.start_child(name, {}, {}) for name in ("sft", "rm"))
    tracker.dataset_in(maker, "pairs", "0123456789abcdef" * 4, "/data/pairs.jsonl", "training")
    model = tracker.model_out(maker, "small-sft", {"alignflow.fingerprint": "f" * 64})
    assert model is not None
    tracker.model_in(user, model)
    (edge,) = tracker.client.get_run(maker).inputs.dataset_inputs
    assert (edge.dataset.name, edge.dataset.digest) == ("pairs", "0123456789abcdef" * 2)
    assert json.loads(edge.dataset.source) == {"uri": "/data/pairs.jsonl"}
    assert [(tag.key, tag.value) for tag in edge.tags] == [("mlflow.data.context", "training")]
    assert [m.model_id for m in tracker.client.get_run(maker).outputs.model_outputs] == [model]
    assert [m.model_id for m in tracker.client.get_run(user).inputs.model_inputs] == [model]
    assert tracker.client.get_logged_model(model).tags["alignflow.fingerprint"] == "f" * 64


def test_an_experiment_is_made_once_and_brought_back_when_it_was_deleted(opened: Callable[..., Tracker]) -> None:
    first, again = opened("shared"), opened("shared")
    assert first.experiment_id == again.experiment_id
    first.client.delete_experiment(first.experiment_id)
    restored = opened("shared")
    assert restored.experiment_id == first.experiment_id
    assert restored.client.get_experiment(first.experiment_id).lifecycle_stage == "active"


def test_a_lost_database_costs_nothing_but_its_lines_and_the_rest_is_logged_when_it_is_back(
    tracker: Tracker, place: Path, tmp_path: Path
) -> None:
    run = tracker.start_child("stage", {}, {})
    place.rename(tmp_path / "away")
    try:
        for step in range(3):
            tracker.metrics(run, {"train/loss": 0.5}, step)
        assert tracker.model_out(run, "small-sft", {}) is None
        without = tracker.start_child("another", {}, {})
        assert without == ""
    finally:
        (tmp_path / "away").rename(place)
    assert any("sqlite3.OperationalError" in line for line in tracker.lost)
    assert len(tracker.lost) == len(set(tracker.lost)) <= 3  # the same fault is remembered once
    assert all("\n" not in line and len(line) <= 200 for line in tracker.lost)
    before = list(tracker.lost)
    tracker.metrics(without, {"train/loss": 0.5})  # a stage whose run could not be made has nothing to log to
    tracker.finish(without, "FINISHED")
    tracker.metrics(run, {"train/loss": 0.25}, 4)
    tracker.finish(run, "FINISHED")
    assert tracker.lost == before
    found = tracker.client.get_run(run)
    assert (found.info.status, found.data.metrics) == ("FINISHED", {"train/loss": 0.25})


def test_a_study_does_not_start_where_its_run_cannot_be_made(
    opened: Callable[..., Tracker], place: Path, tmp_path: Path
) -> None:
    made = opened("unstarted")
    place.rename(tmp_path / "away")
    try:
        with pytest.raises(UnfitError, match=r"^MLflow at sqlite:///.*mlflow\.db cannot be used: .+") as caught:
            made.start_parent("small", {}, {})
    finally:
        (tmp_path / "away").rename(place)
    assert "\n" not in str(caught.value)


def test_no_password_is_shown_whatever_fails(tracker: Tracker, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "0")
    address = "http://me:secret@127.0.0.1:9"
    with pytest.raises(UnfitError, match=r"^MLflow at http://me:\*\*\*@127\.0\.0\.1:9 cannot be used: ") as caught:
        Tracker(address, "small", None)
    assert "secret" not in str(caught.value)
    run = tracker.start_child("stage", {}, {})
    tracker.client = MlflowClient(tracking_uri=address)
    tracker.metrics(run, {"train/loss": 0.5})
    (line,) = tracker.lost
    assert "127.0.0.1" in line
    assert "secret" not in line


@pytest.mark.parametrize(
    ("uri", "page"),
    [
        ("sqlite:///SOMEWHERE/mlflow.db", "http://127.0.0.1:5000/#/experiments/1/runs/abc"),
        ("http://runs.example:5000/", "http://runs.example:5000/#/experiments/1/runs/abc"),
        ("https://me:***@runs.example/mlflow", "https://runs.example/mlflow/#/experiments/1/runs/abc"),
    ],
)
def test_a_run_has_a_page(tracker: Tracker, uri: str, page: str) -> None:
    tracker.uri, tracker.experiment_id = uri, "1"
    assert tracker.url("abc") == page


def test_a_browser_may_know_the_tracking_server_by_another_name(
    tracker: Tracker, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("ALIGNFLOW_MLFLOW_PAGES", "http://127.0.0.1:5000/")
    tracker.uri, tracker.experiment_id = "http://mlflow:5000", "1"
    assert tracker.url("abc") == "http://127.0.0.1:5000/#/experiments/1/runs/abc"


def test_runs_that_one_flow_run_left_open_are_ended_and_no_others(opened: Callable[..., Tracker]) -> None:
    tracker = opened("left open")
    tracker.start_parent("dead", {"prefect.flow_run_id": "one"}, {})
    dead = tracker.parent, tracker.start_child("rolls", {"prefect.flow_run_id": "one"}, {})
    done = tracker.start_child("pairs", {"prefect.flow_run_id": "one"}, {})
    tracker.finish(done, "FINISHED")
    tracker.start_parent("alive", {"prefect.flow_run_id": "other"}, {})
    end_runs(tracker.client, tracker.experiment_id, "one", "KILLED")
    states = [tracker.client.get_run(run).info.status for run in (*dead, done, tracker.parent)]
    assert states == ["KILLED", "KILLED", "FINISHED", "RUNNING"]


def test_a_run_that_a_dying_server_began_without_saying_so_is_ended_with_the_study(
    opened: Callable[..., Tracker],
) -> None:
    tracker = opened("begun twice")
    tags = {"prefect.flow_run_id": "a flow run"}
    tracker.start_parent("study", tags, {})
    unheard, heard = (tracker.start_child("rolls", tags, {}) for _ in range(2))
    for run in (heard, tracker.parent):
        tracker.finish(run, "FINISHED")
    tracker.finish_strays("a flow run")
    states = [tracker.client.get_run(run).info.status for run in (unheard, heard, tracker.parent)]
    assert states == ["KILLED", "FINISHED", "FINISHED"]


def test_a_server_that_went_away_is_not_waited_for_at_every_call(
    tracker: Tracker, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(tracker, "uri", "http://127.0.0.1:9")  # nothing answers there
    asked = []

    def refused(*_: Any) -> None:
        asked.append(1)
        raise ConnectionError("away")

    monkeypatch.setattr(tracker.client, "set_terminated", refused)
    for _ in range(3):
        tracker.finish(tracker.parent, "FINISHED")
    assert len(asked) == 1 and tracker.untold
