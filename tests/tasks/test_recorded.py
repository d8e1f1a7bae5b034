"""The study in a record: every recipe comes back whole."""

from __future__ import annotations

from pathlib import Path

import pytest
from pydantic import ValidationError

from registry.store import Stored
from specs.load import load
from specs.problems import UserError
from specs.study import Study
from tasks.recorded import snapshot, study_of
from tasks.view import View

RECIPES = sorted((Path(__file__).parents[2] / "specs" / "recipes").glob("*.yaml"))


@pytest.mark.parametrize("recipe", RECIPES, ids=lambda path: path.stem)
def test_a_recipe_comes_back_from_its_snapshot_with_every_fingerprint(
    recipe: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("ALIGNFLOW_DATA", str(tmp_path))
    loaded = load(recipe)
    view = View.of(loaded.study, tmp_path, recipe.parent, offline=True)
    again = Study.model_validate(snapshot(view, "any")["spec"])
    assert View.of(again, tmp_path, recipe.parent, offline=True).nodes == view.nodes


def test_a_record_from_before_there_were_studies_in_them_is_told(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="built before records held their study"):
        study_of(Stored(tmp_path, {"fingerprint": "f"}))


def test_a_record_whose_schedule_is_over_is_read(tmp_path: Path) -> None:
    spec = {
        "version": 1, "name": "nightly", "models": {"base": {"source": "smollm2-135m-instruct"}},
        "stages": {"warm": {"do": "decode", "method": "greedy", "from": "base"}},
        "schedule": {"rrule": "DTSTART:20250101T020000\nRRULE:FREQ=DAILY;COUNT=3"},
    }  # fmt: skip
    with pytest.raises(ValidationError, match="it names no time to come"):
        Study.model_validate(spec)
    kept = {"spec": spec, "folder": str(tmp_path), "stage": "warm"}
    study, _, stage = study_of(Stored(tmp_path, {"study": kept}))
    assert (study.name, study.schedule, stage) == ("nightly", None, "warm")
