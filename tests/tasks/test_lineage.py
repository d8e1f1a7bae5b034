"""What part a reward had in a policy, and what making it took."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import handmade
import pytest
import stages
import tiny

from tasks.lineage import Making, making, role
from tasks.view import View

STUDY = """\
models: {base: {source: ./model, precision: fp32}}
data:
  prompts: {source: ./prompts.jsonl, format: prompt}
  people: {source: ./pairs.jsonl, format: preference, split: {mine: 1, yours: 1}}
  some: {source: ./pairs.jsonl, format: preference, rows: 1}
  others: {source: ./others.jsonl, format: preference}
rewards:
  gold: {kind: length}
  mine: {kind: lexicon}
  blend: {kind: weighted, of: {mine: 0.7, gold: 0.3}}
stages:
  rolls: {do: sample, from: base, prompts: prompts, samples: 2}
  pairs: {do: label, responses: rolls, reward: gold}
  tuned: {do: sft, from: base, data: pairs}
  rm: {do: reward_model, from: base, data: pairs}
  rm2: {do: reward_model, from: base, data: pairs, seed: 5}
  warm: {do: soup, experts: [rm, rm2], weights: [0.5, 0.5]}
  rank: {do: calibrate, reward: rm, reference: base, prompts: prompts}
  ctrl: {do: rl, from: base, prompts: prompts, reward: rank, transform: {kind: identity}}
  values: {do: prefix_scorer, loss: cd_fudge, from: base, responses: rolls, reward: mine}
  best: {do: decode, method: best_of_n, from: ctrl, reward: blend, n: 2}
  cd: {do: decode, method: controlled_decoding, from: base, scorers: {values: 1.0}}
  rank_mine: {do: calibrate, reward: mine, reference: base, prompts: prompts}
  best_mine: {do: decode, method: best_of_n, from: base, reward: mine, n: 2}
  arm: {do: autoregressive_reward_model, from: base, data: pairs}
  by_arm: {do: decode, method: genarm, from: base, guides: {arm: 1.0}}
  told: {do: reward_model, from: base, data: people.mine}
  dpo: {do: dpo, from: base, data: people.mine}
  dpo_yours: {do: dpo, from: base, data: people.yours}
  dpo_some: {do: dpo, from: base, data: some}
  dpo_others: {do: dpo, from: base, data: others}
  asked: {do: raft, from: base, prompts: people.mine, reward: mine}
  short: {do: raft, from: base, prompts: prompts, reward: gold}
  end: {do: soup, experts: [asked, short], weights: [0.0, 1.0]}
  middle: {do: soup, experts: [asked, short], weights: [0.5, 0.5]}
  by_warm: {do: decode, method: best_of_n, from: base, reward: warm, n: 2}
"""


@pytest.fixture(scope="module")
def view(tmp_path_factory: pytest.TempPathFactory) -> Any:
    folder: Path = tmp_path_factory.mktemp("lineage")
    tiny.language_model(folder / "model")
    tiny.write_lines(folder / "prompts.jsonl", [{"prompt": "x"}])
    for name, asked in (("pairs", "ab"), ("others", "cd")):
        rows = [{"prompt": p, "chosen": "yes", "rejected": "no"} for p in asked]
        tiny.write_lines(folder / f"{name}.jsonl", rows)
    return stages.study(folder, STUDY)


@pytest.mark.parametrize(
    ("policy", "reward", "expected"),
    [
        ("base", "gold", "held out"),
        ("tuned", "gold", "guides"),  # it ordered what was learnt
        ("tuned", "rm", "same labels"),
        ("ctrl", "rm", "guides"),  # calibrated, it is still what is maximised
        ("ctrl", "gold", "behind the guide"),
        ("best", "blend", "guides"),
        ("best", "mine", "guides"),  # a part of what chooses
        ("best", "gold", "guides"),
        ("cd", "mine", "behind the guide"),  # values were learnt from it
        ("by_warm", "rm", "guides"),
        ("by_warm", "gold", "behind the guide"),
        ("by_warm", "mine", "held out"),
        ("best_mine", "blend", "guides"),  # the judge is put together from the guide
        ("best_mine", "rank_mine", "guides"),
        ("short", "rank_mine", "held out"),
        ("by_arm", "rm", "same labels"),
        ("cd", "rank_mine", "behind the guide"),
        ("short", "rm", "same labels"),  # the guide is what taught the judge
        ("dpo", "told", "same labels"),
        ("dpo_yours", "told", "held out"),  # another part of the rows
        ("dpo_some", "told", "same labels"),  # another entry, which names the same file
        ("dpo_others", "told", "held out"),
        ("asked", "told", "held out"),  # whose prompts alone were asked
        ("middle", "mine", "guides"),
        ("end", "mine", "held out"),  # an expert of no weight had no part
    ],
)
def test_a_reward_guides_where_nothing_learnt_stands_between(
    view: Any, policy: str, reward: str, expected: str
) -> None:
    assert role(view.artifact(policy), view.artifact(reward)) == expected


@pytest.fixture
def chain(tmp_path: Path, home: Path) -> View:
    """Rollouts, their labels and what learnt from them, in 1, 2 and 4 seconds; a rule in 8."""
    made = handmade.view(tmp_path)
    for name, seconds in (("rolls", 1.0), ("pairs", 2.0), ("sft", 4.0), ("bon[n=2]", 8.0)):
        handmade.put(made, name, {}, seconds=seconds)
    return made


def test_making_is_all_that_the_stages_below_took_and_no_one_twice(chain: View) -> None:
    assert making(chain.artifact("base")) == Making(0.0, True)
    assert making(chain.artifact("bon[n=2]")) == Making(8.0, True)
    assert making(chain.artifact("sft")) == Making(7.0, True)
    sft = chain.artifact("sft")
    twice = replace(chain.artifact("bon[n=2]"), inputs={"from": (sft,), "data": (*sft.inputs["data"], sft)})
    assert making(twice).seconds == 15.0


def test_making_is_no_whole_where_something_below_is_not_stored(chain: View) -> None:
    assert making(chain.artifact("bon[n=4]")) == Making(0.0, False)
    sft = chain.artifact("sft")
    # As a model that a run goes on `since`: with the models below it, and without the pairs that its record names.
    assert making(replace(sft, inputs={"from": sft.inputs["from"]})) == Making(4.0, False)
