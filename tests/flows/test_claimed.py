"""A run of a deployment is claimed before it looks at its study: if it dies over that, somebody knows."""

from __future__ import annotations

import importlib
import os
from pathlib import Path
from types import SimpleNamespace
from typing import Any
from uuid import uuid4

import handmade
import pytest

from flows import sweeping
from registry.claims import living, orphans
from specs.problems import UserError


@pytest.fixture
def module() -> Any:
    return importlib.import_module("flows.align")  # the package's `align` is the flow


def test_it_is_known_while_its_study_is_looked_at_and_let_go_where_that_fails(
    tmp_path: Path, home: Path, module: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen: list[dict[str, Any]] = []

    def checked(*_: Any, **__: Any) -> Any:
        seen.extend(living(home))
        raise UserError("there is no file")

    monkeypatch.setattr(module.deployed, "checked", checked)
    run = SimpleNamespace(id=uuid4(), deployment_id=uuid4())
    with pytest.raises(UserError):
        module.open_session(run, handmade.view(tmp_path).study, tmp_path, False, frozenset())
    assert [(note["flow_run"], note["process"]) for note in seen] == [(str(run.id), os.getpid())]
    assert living(home) == [] and list(orphans(home)) == []


def test_what_died_over_it_is_closed_on_its_server_by_the_next(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from registry.claims import claim

    run = str(uuid4())
    dead = claim(home, f"{run}-begun", sweeping.begun(run, "https://prefect.example/api", is_deployed=True))
    dead.lock.release()  # as the kernel does
    closed: list[str] = []
    monkeypatch.setattr(sweeping, "_crash", lambda which, *_: closed.extend(map(str, which.id.any_)))
    sweeping.sweep(home, "https://elsewhere.example/api", None, "sqlite:///x", own="")  # type: ignore[arg-type]
    assert closed == []
    sweeping.sweep(home, "https://prefect.example/api", None, "sqlite:///x", own="")  # type: ignore[arg-type]
    assert closed == [run] and list(orphans(home)) == []
