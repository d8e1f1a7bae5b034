"""A study beside its store: leaves that change under a run, and nodes that many ways lead to."""

from __future__ import annotations

from pathlib import Path

import handmade
import pytest
import stages
import tiny

from specs.problems import UserError
from tasks.session import Session
from tasks.view import View, last_payloads

STUDY = """\
models: {{base: {{source: ./model, precision: fp32}}}}
data:
  rows: {{source: ./rows.jsonl, format: prompt, split: {{train: 2, eval: 1}}}}
  others: {{source: ./others.jsonl, format: prompt}}
rewards:
  mine: {{kind: python, target: reward_that_changes:score}}
  length: {{kind: length}}
  both: {{kind: weighted, of: {{mine: 1.0, rm: 1.0}}}}
  {rewards}
stages:
  rolls: {{do: sample, from: base, prompts: rows.train, samples: 2}}
  more: {{do: sample, from: base, prompts: others, samples: 2}}
  pairs: {{do: label, responses: rolls, reward: mine}}
  rm: {{do: reward_model, from: base, data: pairs}}
  bon: {{do: decode, method: best_of_n, from: base, reward: rm, n: 2}}
  judged: {{do: evaluate, policies: [bon], against: base, prompts: others, rewards: [both]}}
  tried: {{do: label, responses: rolls, reward: length}}
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
    with pytest.raises(UserError, match=r"^data\.rows\.train: it changed after the run began; run again$"):
        view.check_leaves("rolls")
    # Who reads other rows goes on, and so does who reads what was made of them before.
    for stage in ("more", "pairs"):
        view.check_leaves(stage)


def test_so_does_the_source_of_a_reward_the_weights_of_a_model_and_what_is_gone(tmp_path: Path) -> None:
    view = made(tmp_path)
    (tmp_path / "reward_that_changes.py").write_text("def score(prompts, responses): return [0.0 for _ in responses]\n")
    view.check_leaves("rolls")
    for stage in ("pairs", "judged"):
        with pytest.raises(UserError, match=r"^rewards\.mine: it changed"):
            view.check_leaves(stage)
    view.check_leaves("rm")  # learnt from what the reward made, which is stored
    (tmp_path / "others.jsonl").unlink()
    with pytest.raises(UserError, match=r"^data\.others: there is no file"):
        view.check_leaves("more")
    tiny.language_model(tmp_path / "model", seed=1)
    for stage in ("rolls", "rm", "bon", "judged"):
        with pytest.raises(UserError, match=r"^models\.base: it changed"):
            view.check_leaves(stage)
    view.check_leaves("tried")


def test_a_run_keeps_what_it_finds_stored_from_its_beginning(tmp_path: Path, home: Path) -> None:
    # So that a `gc` while the run's first stage is still being built leaves its inputs alone.
    study = handmade.view(tmp_path)
    handmade.put(study, "rolls", {"responses.jsonl": ""})
    again = handmade.view(tmp_path)
    assert again.planned["rolls"].state == "cached"
    assert last_payloads(again.home, "small") == {}
    Session(**vars(again), tracker=None, tags={}, observe=print, claim=None).remember()
    assert set(last_payloads(again.home, "small")) == {"rolls"}


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


def test_a_variable_that_is_set_no_more_is_told_at_the_leaf_that_names_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As where a recorded study is looked at in another environment."""
    monkeypatch.setenv("MODELS", str(tmp_path))
    text = 'base: {source: "${env:MODELS}/base"}'
    made = handmade.view(
        tmp_path, handmade.STUDY.replace("base: {source: smollm2-135m-instruct, precision: fp32}", text)
    )
    monkeypatch.delenv("MODELS")
    again = View.of(made.study, made.home, tmp_path, offline=True)
    assert (("models", "base", "source"), "the environment variable `MODELS` is not set") in again.problems()
