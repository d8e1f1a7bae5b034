"""A policy in MLflow's registry, in a real database: a version with its files, an alias; or, when anything fails, nothing."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import handmade
import pytest
import stages
import tiny

from specs.problems import UnfitError, UserError
from specs.sources import promoted
from tasks.lineage import Making, making
from tasks.registering import check_names, content, register, used
from tasks.tracking import Tracker
from tasks.versions import fetched, resolve
from tasks.view import View


@pytest.fixture(scope="module")
def tracker(tmp_path_factory: pytest.TempPathFactory) -> Tracker:
    """One database for all tests: to make one takes seconds. Each promotes under a name of its own."""
    folder = tmp_path_factory.mktemp("mlflow")
    return Tracker(f"sqlite:///{folder}/mlflow.db", "small", folder / "artifacts")


@pytest.fixture
def study(tmp_path: Path, home: Path) -> View:
    made = handmade.view(tmp_path)
    handmade.put(made, "sft", {"weights.safetensors": "w"})
    handmade.put(made, "bon[n=2]", {"rule.json": "{}"})
    handmade.put(made, "bon[n=4]", {"rule.json": "{}"})
    return made


def state(tracker: Tracker, name: str) -> tuple[list[str], dict[str, str]]:
    """The versions of a registered model and what its aliases mean."""
    found = tracker.client.search_model_versions(f"name = '{name}'")
    return sorted(str(v.version) for v in found), {
        alias: str(v) for alias, v in tracker.client.get_registered_model(name).aliases.items()
    }


def test_a_version_has_its_files_its_lineage_and_what_is_to_be_known(tracker: Tracker, study: View) -> None:
    made = register(tracker, study, "sft", "told", "champion", {"alignflow.stage": "sft"}, "# It")
    assert str(made) == "models:/told@champion is version 1"
    version = tracker.client.get_model_version_by_alias("told", "champion")
    assert version.description == "# It" and version.tags["alignflow.stage"] == "sft"
    assert version.tags["alignflow.fingerprint"] == study.nodes["sft"].fingerprint
    model = tracker.client.get_logged_model(version.tags["alignflow.model"])
    assert model.tags["mlflow.modelVersions"] == '[{"name": "told", "version": 1}]'
    place = f"sft/{study.nodes['sft'].fingerprint[:16]}"
    kept = Path(model.artifact_location.removeprefix("file://"))
    assert sorted(str(p.relative_to(kept)) for p in kept.rglob("*") if p.is_file()) == [
        "policy.json",
        f"{place}/record.json",
        f"{place}/weights.safetensors",
    ]
    found = resolve(promoted("models:/told@champion"), tracker.uri)
    steps = found.steps("start")
    assert steps[-1].fingerprint == study.nodes["sft"].fingerprint
    assert {s.name: s.held_by for s in steps if s.held_by} == {"start": "models:/told/1"}
    assert found.uses("start") == {"start", "start:base"}


def test_what_taught_a_promoted_model_is_not_known_in_another_home(
    tracker: Tracker, study: View, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name, seconds in (("rolls", 1.0), ("pairs", 2.0), ("sft", 4.0)):
        handmade.put(study, name, {"weights.safetensors": "w"}, seconds=seconds)
    register(tracker, study, "sft", "taught", "champion", {}, "")
    monkeypatch.setenv("MLFLOW_TRACKING_URI", tracker.uri)
    source = "base: {source: smollm2-135m-instruct, precision: fp32}"
    text = handmade.STUDY.replace(source, 'base: {source: "models:/taught@champion"}')
    assert making(handmade.view(tmp_path, text).artifact("base")) == Making(7.0, True)
    monkeypatch.setenv("ALIGNFLOW_HOME", str(tmp_path / "there"))
    there = handmade.view(tmp_path, text)
    fetched(there.home, there.nodes["base"], tracker.uri)
    assert making(there.artifact("base")) == Making(4.0, False)


def test_what_is_the_champion_already_is_left_alone_and_another_alias_uses_the_same_files(
    tracker: Tracker, study: View
) -> None:
    first = register(tracker, study, "sft", "twice", "champion", {}, "")
    again = register(tracker, study, "sft", "twice", "champion", {}, "")
    assert (first.is_new, again.is_new, again.version) == (True, False, "1")
    register(tracker, study, "sft", "twice", "fallback", {}, "")
    one, two = (tracker.client.get_model_version("twice", n) for n in ("1", "2"))
    assert one.source == two.source and one.tags["alignflow.model"] == two.tags["alignflow.model"]
    moved = register(tracker, study, "bon[n=2]", "twice", "champion", {}, "")
    assert (moved.version, moved.before) == ("3", "1")
    assert state(tracker, "twice") == (["1", "2", "3"], {"champion": "3", "fallback": "2"})


Fails = Callable[..., Any]


@pytest.mark.parametrize("call", ["log_model_artifact", "create_model_version", "set_registered_model_alias"])
@pytest.mark.parametrize("is_done", [False, True], ids=["refused", "answer lost"])
def test_what_fails_in_the_middle_leaves_versions_and_aliases_as_they_were(
    tracker: Tracker, study: View, monkeypatch: pytest.MonkeyPatch, call: str, is_done: bool
) -> None:
    name = f"{call}{is_done}"
    register(tracker, study, "sft", name, "champion", {}, "")
    before, whole = state(tracker, name), getattr(tracker.client, call)

    def fails(*arguments: Any, **named: Any) -> None:
        monkeypatch.undo()  # what undoes it speaks to the same client
        if is_done:
            whole(*arguments, **named)
        raise ConnectionError("the line is dead")

    monkeypatch.setattr(tracker.client, call, fails)
    with pytest.raises(
        UnfitError, match=r"nothing was promoted: .*the line is dead.*; versions and aliases are as they were"
    ):
        register(tracker, study, "bon[n=2]", name, "champion", {}, "")
    assert state(tracker, name) == before
    assert register(tracker, study, "bon[n=2]", name, "champion", {}, "").is_new


def test_a_first_promotion_that_fails_leaves_no_registered_model(
    tracker: Tracker, study: View, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(tracker.client, "set_registered_model_alias", lambda *_: 1 / 0)
    with pytest.raises(UnfitError, match="nothing was promoted"):
        register(tracker, study, "sft", "never", "champion", {}, "")
    assert "never" not in [model.name for model in tracker.client.search_registered_models()]


def test_an_interrupt_undoes_it_and_goes_on_as_one(
    tracker: Tracker, study: View, monkeypatch: pytest.MonkeyPatch
) -> None:
    def interrupted(*_: Any) -> None:
        raise KeyboardInterrupt

    register(tracker, study, "sft", "stopped", "champion", {}, "")
    monkeypatch.setattr(tracker.client, "set_registered_model_alias", interrupted)
    with pytest.raises(KeyboardInterrupt):
        register(tracker, study, "bon[n=2]", "stopped", "champion", {}, "")
    monkeypatch.undo()
    assert state(tracker, "stopped") == (["1"], {"champion": "1"})


def test_what_cannot_be_undone_is_named(tracker: Tracker, study: View, monkeypatch: pytest.MonkeyPatch) -> None:
    register(tracker, study, "sft", "stuck", "champion", {}, "")
    for call in ("set_registered_model_alias", "delete_model_version"):
        monkeypatch.setattr(tracker.client, call, lambda *_: 1 / 0)
    with pytest.raises(UnfitError, match=r"not undone: the new version \(division by zero\)"):
        register(tracker, study, "bon[n=4]", "stuck", "champion", {}, "")


NAMES = [("a", "latest"), ("a", "v3"), ("a", ""), ("a", "x y"), ("a/b", "x"), ("", "x"), ("a@b", "x")]


@pytest.mark.parametrize(("name", "alias"), NAMES)
def test_names_that_could_not_be_asked_for_are_refused(name: str, alias: str) -> None:
    with pytest.raises(UserError):
        check_names(name, alias)
    check_names("a policy.2", "champion")


STAGES = """
models: {base: {source: ./model, precision: fp32}}
data: {asked: {source: ./prompts.jsonl, format: prompt}}
rewards:
  mine: {kind: python, target: my_reward:score}
  words: {kind: length}
  sum: {kind: weighted, of: {words: 1.0, rm: 1.0}}
stages:
  told: {do: sample, from: base, prompts: asked, samples: 2}
  pairs: {do: label, responses: told, reward: mine}
  rm: {do: reward_model, from: base, data: pairs}
  one: {do: dpo, from: base, data: pairs}
  two: {do: rl, from: one, reward: rm, prompts: asked}
  soup: {do: soup, experts: [one, two], weights: [0.5, 0.5]}
  best: {do: decode, method: best_of_n, from: soup, reward: sum, n: 2}
  asks: {do: decode, method: best_of_n, from: base, reward: mine, n: 2}
"""


@pytest.fixture
def varied(tmp_path: Path) -> View:
    tiny.language_model(tmp_path / "model")
    tiny.write_lines(tmp_path / "prompts.jsonl", [{"prompt": "Why?"}])
    (tmp_path / "my_reward.py").write_text("def score(prompts, responses): ...\n")
    return stages.study(tmp_path, STAGES)


@pytest.mark.parametrize(
    ("policy", "needs"),
    [("two", "two one base"), ("soup", "soup one base"), ("best", "best soup one base sum words rm"), ("base", "base")],
)
def test_a_policy_needs_what_it_answers_with_and_not_what_taught_it(varied: View, policy: str, needs: str) -> None:
    assert {artifact.name for artifact in used(varied.artifact(policy))} == set(needs.split())


def test_what_no_version_can_hold_or_the_store_lacks_is_told_first(varied: View) -> None:
    with pytest.raises(UserError, match="`asks` asks `mine`, whose code lies beside the study"):
        content(varied, "asks")
    with pytest.raises(UserError, match="`two` is made of what is not stored: one, two; run the study first"):
        content(varied, "two")
