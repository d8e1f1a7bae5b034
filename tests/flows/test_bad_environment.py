"""A machine that cannot run a study: full disks, homes that cannot be written, servers and databases out of reach."""

from __future__ import annotations

import json
import os
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest
import tiny
from command import alignflow, planned, stored, told

STUDY = """\
version: 1
name: small
models:
  base: {source: ./model, precision: fp32}
data:
  rows: {source: ./rows.jsonl, format: prompt}
  pairs: {source: ./pairs.jsonl, format: preference}
stages:
  rolls: {do: sample, from: base, prompts: rows, max_new_tokens: 4}
  sft: {do: sft, from: base, data: pairs, lora: null, max_length: 64}
"""


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Its weights are 5 MB."""
    return tiny.language_model(tmp_path_factory.mktemp("m") / "model", hidden_size=256, intermediate_size=512)


@pytest.fixture
def folder(model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    (tmp_path / "model").symlink_to(model)
    tiny.write_lines(tmp_path / "rows.jsonl", [{"prompt": "Tell me"}])
    tiny.write_lines(tmp_path / "pairs.jsonl", [{"prompt": "Tell me", "chosen": "yes", "rejected": "no"}])
    (tmp_path / "s.yaml").write_text(STUDY)
    monkeypatch.chdir(tmp_path)
    return tmp_path


class Disk:
    """A disk of a few megabytes, in memory."""

    def __init__(self, place: Path):
        self.place = place

    def mount(self, options: str) -> bool:
        command = ["mount", "-t", "tmpfs", "-o", options, "tmpfs", str(self.place)]
        return subprocess.run(command, capture_output=True).returncode == 0


@pytest.fixture
def disk(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Disk]:
    made = Disk(tmp_path / "disk")
    made.place.mkdir()
    if os.geteuid() or not made.mount("size=4m"):
        pytest.skip("a disk of the test's own can be mounted by root only (`mount -t tmpfs`), and in few containers")
    monkeypatch.setenv("ALIGNFLOW_HOME", str(made.place / "home"))
    yield made
    subprocess.run(["umount", "-l", str(made.place)], check=True)


@pytest.mark.slow
def test_a_disk_that_fills_up_fails_the_stage_leaves_nothing_half_written_and_the_next_run_goes_on(
    folder: Path, disk: Disk, prefect_server: str
) -> None:
    """The disk has room for the tracking database and the responses, not for 5 MB of weights."""
    home = disk.place / "home"
    full = alignflow(folder, "run", "s.yaml", "--json", PREFECT_API_URL=prefect_server)
    assert full.returncode == 1
    reason = f"{home}/store/sft: No space left on device; `alignflow gc` frees what no study needs"
    assert json.loads(full.stdout)["failed"] == {"sft": reason}
    assert f"sft: failed: {reason}" in full.stderr
    assert full.stderr.count("sft: started") == 1
    assert stored(home) == ["sample"]
    assert disk.mount("remount,size=32m")
    roomy = alignflow(folder, "run", "s.yaml", "--json", PREFECT_API_URL=prefect_server)
    assert roomy.returncode == 0
    assert json.loads(roomy.stdout)["stages"] == {"rolls": "cached", "sft": "done"}
    assert stored(home) == ["sample", "sft"]


def test_a_disk_that_is_full_already_is_exit_status_4_before_anything_starts(
    folder: Path, disk: Disk, capsys: pytest.CaptureFixture[str]
) -> None:
    (disk.place / "ballast").write_bytes(bytes(3_500_000))
    status, out, err = told(capsys, "run", "s.yaml")
    assert (status, out) == (4, [])
    assert err == [
        f"environment: the disk that holds {disk.place}/home is full; `alignflow gc` frees what no study needs"
    ]
    assert not [p for p in (disk.place / "home").rglob("*") if p.is_file() and p.name != ".gitignore"]


def test_a_home_that_can_only_be_read_is_enough_to_look_but_not_to_run(
    folder: Path, disk: Disk, capsys: pytest.CaptureFixture[str]
) -> None:
    assert disk.mount("remount,ro")
    assert told(capsys, "check", "s.yaml")[0] == 0
    assert [row[:2] for row in planned(told(capsys, "plan", "s.yaml")[1])] == [["run", "rolls"], ["run", "sft"]]
    assert told(capsys, "show", "s.yaml")[0] == 0
    status, out, err = told(capsys, "run", "s.yaml")
    assert (status, out) == (4, [])
    assert err == [
        f"environment: the home folder {disk.place}/home cannot be written: Read-only file system; "
        "set ALIGNFLOW_HOME to a folder that can"
    ]


@pytest.mark.slow
def test_a_tracking_database_that_is_none_is_exit_status_4_and_nothing_is_built(
    folder: Path, prefect_server: str
) -> None:
    """The address is named in the study and stands in the environment, so that no secret is in the file."""
    (folder / "junk.db").write_bytes(b"not a database at all" * 100)
    (folder / "s.yaml").write_text(STUDY + "tracking: {uri: '${env:RUNS}'}\n")
    address = f"sqlite:///{folder}/junk.db"
    done = alignflow(folder, "run", "s.yaml", PREFECT_API_URL=prefect_server, RUNS=address)
    assert done.returncode == 4
    assert done.stderr.splitlines() == [
        f"environment: MLflow at {address} cannot be used: (sqlite3.DatabaseError) file is not a database"
    ]
    assert stored(folder / ".alignflow") == []


@pytest.mark.parametrize("named_by", ["environment", "prefect.toml", "profile"])
def test_a_prefect_server_out_of_reach_is_exit_status_4_wherever_it_is_named(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, named_by: str
) -> None:
    url = "http://127.0.0.1:9/api"
    environment = {"PREFECT_HOME": str(tmp_path / "prefect")}
    if named_by == "environment":
        environment["PREFECT_API_URL"] = url
    elif named_by == "prefect.toml":
        (folder / "prefect.toml").write_text(f'[api]\nurl = "{url}"\n')
    else:
        (tmp_path / "prefect").mkdir()
        profile = f'active = "team"\n[profiles.team]\nPREFECT_API_URL = "{url}"\n'
        (tmp_path / "prefect" / "profiles.toml").write_text(profile)
    done = alignflow(folder, "run", "s.yaml", **environment)
    assert (done.returncode, done.stdout) == (4, "")
    assert done.stderr == (
        f"environment: no Prefect server answers at {url}; start it, or name none (PREFECT_API_URL, "
        "prefect.toml, profile) to use a temporary one\n"
    )
    assert stored(folder / ".alignflow") == []
