"""A study beside its store: leaves that change under a run, and nodes that many ways lead to."""

from __future__ import annotations

from pathlib import Path

import pytest
import stages
import tiny

from specs.problems import UserError
from tasks.view import View

STUDY = """\
models: {{base: {{source: ./model, precision: fp32}}}}
data:
  rows: {{source: ./rows.jsonl, format: prompt, split: {{train: 2, eval: 1}}}}
  others: {{source: ./others.jsonl, format: prompt}}
rewards:
  mine: {{kind: python, target: reward_that_changes:score}}
  {rewards}
stages:
  rolls: {{do: sample, from: base, prompts: rows.train}}
  more: {{do: sample, from: base, prompts: others}}
  pairs: {{do: label, responses: rolls, reward: mine}}
"""


def made(folder: Path, rewards: str = "") -> View:
    tiny.language_model(folder / "model")
    for name in ("rows", "others"):
        tiny.write_lines(folder / f"{name}.jsonl", [{"prompt": f"Number {i}?"} for i in range(4)])
    (folder / "reward_that_changes.py").write_text("def score(prompts, responses): ...\n")
    return stages.study(folder, STUDY.format(rewards=rewards))


def test_what_changed_since_the_plan_is_not_built_under_the_old_fingerprint(tmp_path: Path) -> None:
    view = made(tmp_path)
    for stage in ("rolls", "more", "pairs"):
        view.check_leaves(stage)
    with (tmp_path / "rows.jsonl").open("a") as file:
        file.write('{"prompt": "Another?"}\n')
    view.check_leaves("more")
    for stage in ("rolls", "pairs"):
        with pytest.raises(UserError, match=r"^data\.rows\.train: it changed after the run began; run again$"):
            view.check_leaves(stage)


def test_so_does_the_source_of_a_reward_the_weights_of_a_model_and_what_is_gone(tmp_path: Path) -> None:
    view = made(tmp_path)
    (tmp_path / "reward_that_changes.py").write_text("def score(prompts, responses): return [0.0 for _ in responses]\n")
    view.check_leaves("rolls")
    with pytest.raises(UserError, match=r"^rewards\.mine: it changed"):
        view.check_leaves("pairs")
    (tmp_path / "others.jsonl").unlink()
    with pytest.raises(UserError, match=r"^data\.others: there is no file"):
        view.check_leaves("more")
    tiny.language_model(tmp_path / "model", seed=1)
    with pytest.raises(UserError, match=r"^models\.base: it changed"):
        view.check_leaves("rolls")


def test_two_ways_to_one_node_meet_in_one_artifact(tmp_path: Path) -> None:
    # Each reward is made of the one before in two ways: 2**60 ways lead from the last to the first.
    rewards = ["r0: {kind: length}", "s0: {kind: lexicon}"]
    for i in range(1, 61):
        rewards += [
            f"{name}{i}: {{kind: weighted, of: {{r{i - 1}: 1.0, s{i - 1}: {w}}}}}"
            for name, w in (("r", 1.0), ("s", 2.0))
        ]
    view = made(tmp_path, "\n  ".join(rewards))
    last = view.artifact("r60")
    assert last.inputs["of"][0].inputs["of"][1] is last.inputs["of"][1].inputs["of"][1]
