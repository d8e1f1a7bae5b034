"""What is otherwise here than where a stage was built is told once, with the stages and with what it means."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import pytest

from flows.surroundings import differences
from registry import environments
from registry.provenance import provenance
from tasks.machine import machine


@pytest.fixture
def now(tmp_path: Path) -> dict[str, Any]:
    return {**provenance(0, 2), "machine": machine(), "environment": environments.remember(tmp_path)}


def told(home: Path, now: dict[str, Any], **changes: Any) -> list[str]:
    return [str(one) for one in differences({"sft": {"provenance": now | changes}}, home, now)]


def test_the_same_surroundings_are_no_news(tmp_path: Path, now: dict[str, Any]) -> None:
    assert told(tmp_path, now) == []


def test_threads_device_processor_libraries_and_variables_are_compared(tmp_path: Path, now: dict[str, Any]) -> None:
    other = copy.deepcopy(now["machine"])
    other |= {"processor": "Abacus", "gpus": ["H100"]}
    other["torch"]["libraries"] = ["BLAS of old"]
    other["variables"] |= {"MKL_CBWR": "COMPATIBLE", "ALIGNFLOW_HOME": "/elsewhere", "CUDA_VISIBLE_DEVICES": "7"}
    found = told(tmp_path, now, threads=64, device="1 GPU", machine=other)
    assert [line.partition(":")[0] for line in found] == [
        "device", "threads", "processor", "gpus", "torch's libraries", "variable MKL_CBWR",
    ]  # fmt: skip
    assert found[1] == "threads: 64, here 2"
    assert found[3] == "gpus: H100, here none"


def test_packages_are_those_of_the_environment_and_of_the_record_alone_where_that_is_gone(
    tmp_path: Path, now: dict[str, Any]
) -> None:
    packages = now["packages"] | {"torch": "1.0"}
    assert told(tmp_path, now, packages=packages) == []  # the environment is what it says
    torch = now["packages"]["torch"]
    assert f"package torch: 1.0, here {torch}" in told(tmp_path, now, packages=packages, environment="gone")


def test_an_environment_that_was_tampered_with_is_not_believed(tmp_path: Path, now: dict[str, Any]) -> None:
    path = tmp_path / "environments" / f"{now['environment']}.json"
    path.write_text(path.read_text().replace("pydantic", "sedantic"))
    assert environments.recall(tmp_path, now["environment"]) is None


def test_equal_differences_of_several_stages_are_one(tmp_path: Path, now: dict[str, Any]) -> None:
    records = {name: {"provenance": now | {"threads": threads}} for name, threads in (("a", 8), ("b", 8), ("c", 4))}
    found = differences(records, tmp_path, now)
    assert [(one.then, one.stages) for one in found] == [(8, ["a", "b"]), (4, ["c"])]
    assert "rounded otherwise" in found[0].means


def test_secrets_do_not_get_into_what_is_recorded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("ALIGNFLOW_API_KEY", "sesame")
    monkeypatch.setenv("ALIGNFLOW_DATA", "https://me:sesame@host/data")
    monkeypatch.setenv("OMP_SCHEDULE", "static")
    found = machine()["variables"]
    assert "sesame" not in str(found)
    assert (found["ALIGNFLOW_DATA"], found["OMP_SCHEDULE"]) == ("https://me:***@host/data", "static")
