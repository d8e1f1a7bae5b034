"""How fast this machine's processor is: really timed, once."""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from registry.throughput import Speed, speed


@pytest.fixture
def kept(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    speed.cache_clear()
    yield tmp_path / "alignflow" / "speed"
    speed.cache_clear()


@pytest.mark.slow
def test_a_processor_is_timed_once_for_each_precision_and_number_of_threads(kept: Path) -> None:
    found = speed("fp32", 1)
    assert found is not None
    assert min(found.training, found.reading) > 1e8
    (path,) = kept.iterdir()
    assert path.name.endswith("-fp32-1.json")
    known = json.loads(path.read_bytes())
    path.write_text(json.dumps(known | {"reading": 2.0, "training": 1.0}))
    assert speed("fp32", 1) == found  # as this process knows it
    speed.cache_clear()
    assert speed("fp32", 1) == Speed(2.0, 1.0)
    path.write_text(json.dumps(known | {"reading": 2.0, "of": known["of"] | {"torch": "1.0"}}))  # before an upgrade
    speed.cache_clear()
    timed = speed("fp32", 1)
    assert timed is not None
    assert timed.reading > 1e8


def test_what_cannot_be_timed_is_not_known(kept: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "executable", "/bin/false")
    assert speed("fp32", 1) is None
    assert not kept.exists()
