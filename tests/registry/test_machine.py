"""What a machine has, as a container sees it: what it may hold, not what the host has. And of how many threads a stage is."""

from __future__ import annotations

import os
from math import inf
from pathlib import Path

import pytest

from registry.machine import _limit, machine, threads

GB = 1_000_000_000


def group(at: Path, most: str, used: int = 0, files: int = 0) -> None:
    at.mkdir(parents=True, exist_ok=True)
    (at / "memory.max").write_text(f"{most}\n")
    (at / "memory.current").write_text(f"{used}\n")
    (at / "memory.stat").write_text(f"anon {used - files}\ninactive_file {files}\n")


def of(tmp_path: Path, path: str) -> tuple[float, float]:
    own = tmp_path / "own"
    own.write_text(f"4:memory:/other\n0::{path}\n")
    return _limit(tmp_path / "groups", own)


def test_a_container_has_what_it_may_hold(tmp_path: Path) -> None:
    group(tmp_path / "groups", str(8 * GB), used=3 * GB, files=1 * GB)
    assert of(tmp_path, "/") == (8 * GB, 6 * GB)


def test_the_tightest_of_the_groups_around_counts(tmp_path: Path) -> None:
    groups = tmp_path / "groups"
    group(groups / "outer", str(4 * GB), used=3 * GB)
    group(groups / "outer" / "inner", str(6 * GB), used=1 * GB)
    group(groups / "outer" / "inner" / "own", "max")
    assert of(tmp_path, "/outer/inner/own") == (4 * GB, 1 * GB)


def test_nothing_limits_where_there_are_no_groups(tmp_path: Path) -> None:
    assert of(tmp_path, "/") == (inf, inf)
    assert _limit(tmp_path, tmp_path / "none") == (inf, inf)


def test_a_study_says_of_how_many_threads_its_stages_are_else_the_environment_else_the_cores(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    cores = len(os.sched_getaffinity(0))
    for told, expected in (("1", 1), ("7", 7), ("", cores), ("0", cores), ("4,2", cores)):
        monkeypatch.setenv("OMP_NUM_THREADS", told)
        assert (threads(None), threads(3)) == (expected, 3)
    monkeypatch.delenv("OMP_NUM_THREADS")
    assert threads(None) == cores


@pytest.mark.parametrize(
    ("visible", "free"),
    [(None, (70, 60)), ("1", (60,)), ("GPU-b, GPU-a", (70, 60)), ("", ()), ("7", ())],
)
def test_of_the_gpus_those_that_this_process_may_use_count(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, visible: str | None, free: tuple[int, ...]
) -> None:
    (tmp_path / "nvidia-smi").write_text(
        "#!/bin/sh\necho 0, GPU-a, 80, 70\necho 1, GPU-b, 80, 60\necho 2, GPU-c, [N/A], [N/A]\n"
    )
    (tmp_path / "nvidia-smi").chmod(0o755)
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    if visible is not None:
        monkeypatch.setenv("CUDA_VISIBLE_DEVICES", visible)
    found = machine(tmp_path, gpus=1)
    assert found.device_free == tuple(2**20 * each for each in free)
    assert found.device_memory == tuple(2**20 * 80 for _ in free)
    assert machine(tmp_path, gpus=0).device_free == ()
