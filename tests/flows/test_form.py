"""The form of a deployment: what a file says fits it, each stage has the fields of its own kind, and nothing else fits."""

from __future__ import annotations

import copy
import json
from pathlib import Path
from typing import Any

import jsonschema
import pytest

from flows import form
from specs.load import load
from specs.study import Study

RECIPES = sorted((Path(__file__).parents[2] / "specs" / "recipes").glob("*.yaml"))


def study(recipe: str) -> Study:
    path = next(path for path in RECIPES if path.stem == recipe)
    return load(path, environment={"ALIGNFLOW_DATA": "/nowhere"}).study


def schema(study: Study) -> dict[str, Any]:
    return form.schema(study, {})["properties"]["study"]["properties"]


def faults(study: Study, parameters: dict[str, Any]) -> list[str]:
    validator = jsonschema.Draft202012Validator(form.schema(study, {}))
    return [f"{e.json_path}: {e.message}" for e in validator.iter_errors({"study": parameters})]


@pytest.mark.parametrize("recipe", [path.stem for path in RECIPES])
def test_a_study_fits_its_own_form_and_comes_back_from_it_whole(recipe: str) -> None:
    made = study(recipe)
    parameters = form.parameters(made)
    assert faults(made, parameters) == []
    # As the server keeps it and the flow takes it.
    assert Study.model_validate(json.loads(json.dumps(parameters))) == made.model_copy(update={"schedule": None})


@pytest.mark.parametrize("recipe", [path.stem for path in RECIPES])
def test_no_stage_reward_or_model_is_a_union_and_each_field_says_what_it_is(recipe: str) -> None:
    for section, shown in schema(study(recipe)).items():
        if section in ("models", "data", "rewards", "stages"):
            for entry in shown["properties"].values():
                assert "oneOf" not in entry and "anyOf" not in entry and entry["description"]
                for key, field in entry["properties"].items():
                    assert field["title"] == key and ("description" in field or "const" in field), key


def test_fields_stand_in_the_order_of_the_language_and_name_their_kind() -> None:
    judge = schema(study("quickstart"))["stages"]["properties"]["reward_model"]
    by_place = sorted(judge["properties"], key=lambda key: judge["properties"][key]["position"])
    assert by_place == list(judge["properties"]) and judge["properties"]["do"]["const"] == "reward_model"
    assert judge["properties"]["beta"]["default"] == 1.0


@pytest.mark.parametrize(
    ("path", "value", "told"),
    [
        (("seed",), "x", "$.study.seed"),
        (("stages", "rollouts", "samples"), 0, "$.study.stages.rollouts.samples: 0 is less than the minimum of 1"),
        (("stages", "rollouts", "smaples"), 4, "$.study.stages.rollouts: Additional properties are not allowed"),
        (("stages", "rollouts", "do"), "sft", "$.study.stages.rollouts.do: 'sample' was expected"),
        (("name",), "other", "$.study.name: 'quickstart' was expected"),
        (("stages", "more"), {"do": "sft"}, "$.study.stages: Additional properties are not allowed"),
        (("schedule",), {"cron": "0 2 * * *"}, "$.study: Additional properties are not allowed"),
    ],
)
def test_what_does_not_fit_is_refused(path: tuple[str, ...], value: Any, told: str) -> None:
    made = study("quickstart")
    parameters = copy.deepcopy(form.parameters(made))
    inner = parameters
    for key in path[:-1]:
        inner = inner[key]
    inner[path[-1]] = value
    assert any(fault.startswith(told) for fault in faults(made, parameters)), faults(made, parameters)
