"""Steps written down come back as they were, and stand in another study with the same fingerprints."""

from __future__ import annotations

import json
from pathlib import Path

import handmade
import pytest

from specs.load import load
from specs.plan import Fact, steps
from specs.problems import UserError
from specs.written import read, under, write

RECIPES = sorted((Path(__file__).parents[2] / "specs" / "recipes").glob("*.yaml"))


@pytest.mark.parametrize("recipe", RECIPES, ids=lambda path: path.stem)
def test_the_steps_of_a_recipe_come_back_whole(recipe: Path) -> None:
    planned = steps(load(recipe, environment={"ALIGNFLOW_DATA": "/nowhere"}).study, {})
    assert read(json.loads(json.dumps(write(planned.values())))) == planned


def test_under_another_name_a_step_brings_what_is_below_it_and_nothing_else(tmp_path: Path, home: Path) -> None:
    nodes = handmade.view(tmp_path).nodes
    moved = under(nodes, "sft", "start")
    assert [s.name for s in moved] == [f"start:{n}" for n in ("base", "prompts.train", "gold", "rolls", "pairs")] + [
        "start"
    ]
    assert moved[-1].inputs == (("from", "start:base"), ("data", "start:pairs"))
    assert moved[-1].fingerprint == nodes["sft"].fingerprint
    assert not any(step.is_stage for step in moved)


def test_a_leaf_that_stands_for_steps_gives_what_is_above_it_the_fingerprint_of_their_own_study(
    tmp_path: Path, home: Path
) -> None:
    nodes = handmade.view(tmp_path).nodes
    text = handmade.STUDY.replace("from: base, reward", "from: start, reward").replace(
        "  base: {source", '  start: {source: "models:/small@champion"}\n  base: {source'
    )
    (tmp_path / "other.yaml").write_text(text)
    other = steps(load(tmp_path / "other.yaml").study, {"start": Fact(steps=under(nodes, "sft", "start"))})
    (tmp_path / "same.yaml").write_text(handmade.STUDY.replace("from: base, reward", "from: sft, reward"))
    same = handmade.view(tmp_path, (tmp_path / "same.yaml").read_text()).nodes
    assert other["bon[n=2]"].fingerprint == same["bon[n=2]"].fingerprint != nodes["bon[n=2]"].fingerprint


def test_a_step_of_a_language_that_is_spoken_no_more_is_told(tmp_path: Path, home: Path) -> None:
    written = write(handmade.view(tmp_path).nodes.values())
    (sft,) = (one for one in written if one["name"] == "sft")
    for change in ({"do": "alchemy"}, {"alchemy": 3}):
        with pytest.raises(UserError, match="the language has changed since `sft` was built"):
            read([sft | {"entry": sft["entry"] | change}])
