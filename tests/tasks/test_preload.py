"""The fork server loads the heavy packages once: a stage's process starts with them, and with no GPU touched."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from specs.execution import Execution
from tasks import child

# It imports none of the packages: what it finds was there before it.
BODY = """
import json, sys
from tasks.job import Result

FOUND = [name for name in ("torch", "transformers", "peft", "trl", "tasks.evaluate") if name in sys.modules]

def look(job):
    cuda = sys.modules["torch"].cuda
    found = {"modules": FOUND, "initialized": cuda.is_initialized(), "bad_fork": cuda._is_in_bad_fork()}
    if cuda.is_available():
        found["sum"] = float(sys.modules["torch"].ones(3, device="cuda").sum())
    (job.out / "found.json").write_text(json.dumps(found))
    return Result()
"""


@pytest.fixture
def found(tmp_path: Path) -> dict[str, Any]:
    """What the body of a stage saw as its process began."""
    (tmp_path / "body_that_looks.py").write_text(BODY)
    log = tmp_path / "s.log"
    path = (str(tmp_path),)
    request = child.Request("body_that_looks:look", None, tmp_path, tmp_path, Execution(), log, None, path)
    child.run_body(request, on_event=lambda event: None)
    return json.loads((tmp_path / "found.json").read_text())


def test_a_stage_starts_with_everything_loaded_and_no_gpu_touched(found: dict[str, Any]) -> None:
    assert found["modules"] == ["torch", "transformers", "peft", "trl", "tasks.evaluate"]
    assert not found["initialized"]
    assert not found["bad_fork"]  # a process forked after CUDA was begun cannot use it
    assert found.get("sum", 3.0) == 3.0
