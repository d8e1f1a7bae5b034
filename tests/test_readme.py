"""What the README shows is true: its study is valid, its reward runs, its commands exist, and recipes heed its advice."""

from __future__ import annotations

import argparse
import re
from pathlib import Path

import pytest
import tiny

from flows.cli import _parser, main
from specs.graph import Graph
from specs.load import load
from specs.study import entries

README = (Path(__file__).parents[1] / "README.md").read_text(encoding="utf-8")


def blocks(language: str) -> list[str]:
    return re.findall(rf"```{language}\n(.*?)```", README, re.DOTALL)


def test_its_study_and_its_reward_stand(tmp_path: Path, home: Path, capsys) -> None:
    (study,), (reward, asking) = blocks("yaml"), blocks("python")
    (tmp_path / "positive.yaml").write_text(study)
    (tmp_path / "my_rewards.py").write_text(reward)
    tiny.write_lines(tmp_path / "prompts.jsonl", [{"prompt": f"Question {i}?"} for i in range(640)])
    assert main(["check", str(tmp_path / "positive.yaml")]) == 0, capsys.readouterr().err
    scope: dict = {}
    exec(reward, scope)
    assert scope["score"](["a"], ["Thank you"]) == [1.0]
    assert "client.chat.completions.create(" in asking


def test_its_commands_are_those_that_there_are() -> None:
    named = {
        verb
        for line in README.splitlines()
        if line.startswith("| `alignflow")
        for verb in re.findall(r"`(?:alignflow )?([a-z]+)", line)
    }
    (commands,) = (action for action in _parser()._actions if isinstance(action, argparse._SubParsersAction))
    assert named == set(commands.choices)
    for verb in named:
        try:
            main([verb, "--help"])
        except SystemExit as end:
            assert end.code == 0


RECIPES = sorted((Path(__file__).parents[1] / "specs" / "recipes").glob("*.yaml"))


@pytest.mark.parametrize("recipe", RECIPES, ids=lambda path: path.stem)
def test_no_recipe_compares_on_prompts_that_decided_when_training_stopped(
    recipe: Path, tmp_path: Path, monkeypatch
) -> None:
    monkeypatch.setenv("ALIGNFLOW_DATA", str(tmp_path))
    graph = Graph(entries(load(recipe).study))
    inputs = [(node.entry.kind_name, *one) for name, node in graph.nodes.items() for one in graph.inputs(name)]
    decided = {name for _, slot, name in inputs if slot == "held_out"}
    compared = {name for kind, slot, name in inputs if (kind, slot) == ("evaluate", "prompts")}
    if recipe.stem == "raft":
        assert decided and compared
    # A whole data set and a part of it have rows in common.
    assert [(a, b) for a in decided for b in compared if a == b or a.split(".")[0] == b or b.split(".")[0] == a] == []


def test_its_pictures_and_links_lie_in_the_repository() -> None:
    root = Path(__file__).parents[1]
    targets = re.findall(r"\]\(((?!http)[^)#]+)\)", README)
    assert len(targets) >= 3
    assert [t for t in targets if not (root / t).exists()] == []
