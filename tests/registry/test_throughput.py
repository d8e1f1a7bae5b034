"""How fast this machine's processor is: really measured, once."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from registry.throughput import Speed, speed


@pytest.fixture
def kept(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    speed.cache_clear()
    yield tmp_path / "alignflow" / "speed"
    speed.cache_clear()


@pytest.mark.slow
def test_a_processor_is_measured_once_for_each_precision_and_number_of_threads(kept: Path) -> None:
    """There and back is at least as slow a way as there."""
    found = speed("fp32", 1)
    assert 1e8 < found.training < 1.5 * found.reading < 1e15
    (path,) = kept.iterdir()
    assert path.name.endswith("-fp32-1.json")
    assert Speed(**json.loads(path.read_bytes())) == found
    path.write_text('{"reading": 2.0, "training": 1.0}')
    assert speed("fp32", 1) == found  # as this process knows it
    speed.cache_clear()
    assert speed("fp32", 1) == Speed(2.0, 1.0)
    path.write_text("half a li")
    speed.cache_clear()
    assert speed("fp32", 1).reading > 1e8
