"""A real study is run and replayed: the same to the bit, refused where it would be another run, and told where it differs."""

from __future__ import annotations

import hashlib
import json
import re
import shutil
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Any

import handmade
import pytest
import tiny
from command import alignflow, told

from flows.past_runs import past_run
from flows.replaying import UNDER_WAY, _alone_in, _own_home, _take_over
from specs.problems import UserError

STUDY = """\
version: 1
name: small
seed: 3
models:
  base: {source: ./model, precision: fp32}
data:
  prompts: {source: ./prompts.jsonl, format: prompt, split: {train: 8, eval: 6}}
rewards:
  gold: {kind: length}
  mine: {kind: python, target: my_reward:score}
stages:
  rolls: {do: sample, from: base, prompts: prompts.train, samples: 4, max_new_tokens: 16}
  pairs: {do: label, responses: rolls, reward: gold, pairs_per_prompt: 2}
  sft: {do: sft, from: base, data: pairs, learning_rate: 1e-3}
  table:
    do: evaluate
    policies: [base, sft]
    against: base
    prompts: prompts.eval
    rewards: [gold, mine]
    budget: {max_new_tokens: 16, samples_per_prompt: 2}
    resamples: 200
    expect: {sft: {length: "< 1"}}
"""


def folder_with_study(folder: Path) -> Path:
    tiny.language_model(folder / "model")
    tiny.write_lines(folder / "prompts.jsonl", [{"prompt": f"Tell me of number {i}"} for i in range(14)])
    (folder / "my_reward.py").write_text(
        "def score(prompts, responses):\n    return [float(len(r)) for r in responses]\n"
    )
    (folder / "s.yaml").write_text(STUDY)
    return folder


@pytest.fixture(scope="module")
def ran(tmp_path_factory: pytest.TempPathFactory, prefect_server: str) -> Path:
    """The folder of a study that ran, and missed what it expected."""
    folder = folder_with_study(tmp_path_factory.mktemp("replay"))
    done = alignflow(folder, "run", "s.yaml", PREFECT_API_URL=prefect_server)
    assert done.returncode == 3, done.stdout + done.stderr
    return folder


def replayed(folder: Path, url: str, *arguments: str, **environment: str) -> tuple[int, dict[str, Any]]:
    done: subprocess.CompletedProcess[str] = alignflow(
        folder, "replay", "small", "--json", *arguments, PREFECT_API_URL=url, **environment
    )
    assert done.stdout, done.stderr
    return done.returncode, json.loads(done.stdout)


@pytest.mark.slow
def test_a_replay_is_the_same_to_the_bit_and_leaves_the_store_alone(ran: Path, prefect_server: str) -> None:
    home = ran / ".alignflow"
    before = {p: p.stat().st_mtime_ns for p in home.rglob("*") if "logs" not in p.parts}
    status, found = replayed(ran, prefect_server)
    assert {one["stage"]: one["verdict"] for one in found["stages"]} == dict.fromkeys(
        ("rolls", "pairs", "sft", "table"), "identical"
    )
    assert (status, found["disagree"], found["surroundings"], found["home"]) == (0, [], [], None)
    after = {p: p.stat().st_mtime_ns for p in home.rglob("*") if "logs" not in p.parts}
    changed = {p for p in {*before, *after} if before.get(p) != after.get(p)}
    assert changed <= {home}  # where the replay had its own home for a while


def tamper(home: Path, stage: str, change: Callable[[dict[str, Any], Path], None]) -> None:
    """Changes what the store holds of a stage, and its record with it."""
    folder = (home / "studies" / "small" / stage).resolve()
    record = json.loads((folder / "record.json").read_bytes())
    change(record, folder)
    (folder / "record.json").write_text(json.dumps(record))


@pytest.mark.slow
def test_what_came_out_otherwise_is_told_with_the_surroundings_that_were(ran: Path, prefect_server: str) -> None:
    other = ran / "other"
    shutil.copytree(ran / ".alignflow", other, symlinks=True)

    def another_version(record: dict[str, Any], _: Path) -> None:
        record["provenance"]["environment"] = "gone"
        record["provenance"]["packages"]["torch"] = "1.0"
        record["provenance"]["machine"]["processor"] = "Abacus"
        record["files"]["responses.jsonl"]["sha256"] = "0" * 64

    def another_result(record: dict[str, Any], folder: Path) -> None:
        found = json.loads((folder / "evaluation.json").read_bytes())
        found["policies"][1]["rewards"][0]["reward"] = {"estimate": 900.0, "low": 899.0, "high": 901.0}
        text = json.dumps(found).encode()
        (folder / "evaluation.json").write_bytes(text)
        record["files"]["evaluation.json"] = {"bytes": len(text), "sha256": hashlib.sha256(text).hexdigest()}

    tamper(other, "rolls", another_version)
    tamper(other, "table", another_result)
    status, found = replayed(ran, prefect_server, "--home", "again", ALIGNFLOW_HOME=str(other))
    assert (status, found["disagree"], found["home"]) == (3, ["rolls", "table"], str(ran / "again"))
    # Whoever changes AlignFlow and has not committed it is told so too.
    others = [o for o in found["surroundings"] if o["what"] != "AlignFlow's code"]
    assert [(o["what"], o["then"], o["stages"]) for o in others] == [
        ("package torch", "1.0", ["rolls"]), ("processor", "Abacus", ["rolls"]),
    ]  # fmt: skip
    rolls, pairs, _, table = found["stages"]
    assert (rolls["verdict"], rolls["other_files"], pairs["verdict"]) == ("differs", ["responses.jsonl"], "identical")
    (metric,) = (m for m in table["metrics"] if not m["agrees"])
    assert (metric["name"], metric["then"], metric["interval"]) == ("sft, gold: reward", 900.0, [899.0, 901.0])
    # What it built is a run like any other, in a home and a tracking database of its own.
    assert past_run("small", ran / "again").stored("sft").record["provenance"]["attempt"] == 1
    assert (ran / "again" / "mlflow.db").exists()


@pytest.mark.slow
def test_for_a_person_it_is_a_table_and_a_sentence(ran: Path, prefect_server: str) -> None:
    done = alignflow(ran, "replay", past_run("small", ran / ".alignflow").id[:6], PREFECT_API_URL=prefect_server)
    lines = done.stdout.splitlines()
    assert done.returncode == 0
    assert "the surroundings are those of the record" in lines
    assert lines[-1] == "the same to the bit"
    assert sum("identical to the bit" in line for line in lines) == 4


@pytest.fixture
def noted(tmp_path: Path, home: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The folder of a study with the note and the records of a run."""
    monkeypatch.chdir(tmp_path)
    folder_with_study(tmp_path)
    view = handmade.view(tmp_path, STUDY)
    for stage in view.planned:
        handmade.put(view, stage, {"a": stage})
    handmade.end(view)
    return tmp_path


def test_data_that_changed_and_a_model_that_is_gone_are_refused_by_name(
    noted: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    then = hashlib.sha256((noted / "prompts.jsonl").read_bytes()).hexdigest()
    with (noted / "prompts.jsonl").open("a") as file:
        file.write('{"prompt": "One more?"}\n')
    shutil.rmtree(noted / "model")
    status, out, err = told(capsys, "replay", "small")
    assert (status, out) == (2, [])
    assert err[0].startswith("run 0123abcd  data.prompts  its sha256 was ") and then in err[0]
    assert err[1].startswith("run 0123abcd  models.base  ") and "model" in err[1]
    assert err[2] == "2 errors; nothing was run."


def test_a_home_that_holds_something_is_refused(noted: Path, capsys: pytest.CaptureFixture[str]) -> None:
    status, _, err = told(capsys, "replay", "small", "--home", "model")
    assert (status, err) == (
        2, ["model is not empty, and what lies there would be taken for built anew; name another --home"],
    )  # fmt: skip


@pytest.mark.parametrize("place", ["s.yaml/again", "/sys/again"])
def test_a_home_that_cannot_be_written_is_exit_status_4(
    place: str, noted: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    status, out, (line,) = told(capsys, "replay", "small", "--home", place)
    assert (status, out) == (4, [])
    assert line.startswith(f"environment: the replay's home {noted / place} cannot be written: ")
    assert line.endswith("; name a folder that can by --home")


def test_a_run_with_a_stage_that_is_not_stored_is_refused(noted: Path, home: Path, capsys) -> None:
    shutil.rmtree(home / "store" / "sft")
    assert told(capsys, "replay", "small")[2] == [
        "`sft` of run 0123abcd is not stored: it was not built, or `gc` took it; run the study again"
    ]


def test_a_replay_that_was_stopped_goes_on_and_one_that_ended_gives_way(noted: Path, home: Path) -> None:
    past = past_run("small", home)
    folder = _own_home(past, None)
    (folder / "built").touch()
    assert _own_home(past, None) == _own_home(past, folder) == folder
    assert (folder / "built").exists()
    (folder / UNDER_WAY).unlink()
    assert not (_own_home(past, None) / "built").exists()


def test_two_replays_do_not_share_a_home(tmp_path: Path) -> None:
    told = re.escape(f"another replay fills {tmp_path}; wait for it, or name a folder by --home")
    with _alone_in(tmp_path), pytest.raises(UserError, match=told), _alone_in(tmp_path):
        pass
    with _alone_in(tmp_path):
        pass


def test_a_model_out_of_a_package_is_taken_over_only_while_its_digests_are_right(tmp_path: Path, home: Path) -> None:
    view = handmade.view(tmp_path)
    base = handmade.put(view, "base", {"model.safetensors": "weights"})
    handmade.end(view)
    past = past_run("small", home)
    assert _take_over(past, tmp_path / "own", home / "verdicts.db") == ["base"]
    taken = tmp_path / "own" / "store" / "model" / base.folder.name
    assert {p.name for p in taken.iterdir()} == {"model.safetensors", "record.json"}
    (base.folder / "model.safetensors").write_text("WEIGHTS")
    assert _take_over(past, tmp_path / "another", home / "verdicts.db") == []
