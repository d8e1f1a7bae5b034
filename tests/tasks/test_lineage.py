"""What part a reward had in a policy."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import stages
import tiny

from tasks.lineage import role

STUDY = """\
models: {base: {source: ./model, precision: fp32}}
data: {prompts: {source: ./prompts.jsonl, format: prompt}}
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
  by_warm: {do: decode, method: best_of_n, from: base, reward: warm, n: 2}
"""


@pytest.fixture(scope="module")
def view(tmp_path_factory: pytest.TempPathFactory) -> Any:
    folder: Path = tmp_path_factory.mktemp("lineage")
    tiny.language_model(folder / "model")
    tiny.write_lines(folder / "prompts.jsonl", [{"prompt": "x"}])
    return stages.study(folder, STUDY)


@pytest.mark.parametrize(
    ("policy", "reward", "expected"),
    [
        ("base", "gold", "held out"),
        ("tuned", "gold", "guides"),  # it ordered what was learnt
        ("tuned", "rm", "held out"),
        ("ctrl", "rm", "guides"),  # calibrated, it is still what is maximised
        ("ctrl", "gold", "behind the guide"),
        ("best", "blend", "guides"),
        ("best", "mine", "guides"),  # a part of what chooses
        ("best", "gold", "guides"),
        ("cd", "mine", "behind the guide"),  # values were learnt from it
        ("by_warm", "rm", "guides"),
        ("by_warm", "gold", "behind the guide"),
        ("by_warm", "mine", "held out"),
    ],
)
def test_a_reward_guides_where_nothing_learnt_stands_between(
    view: Any, policy: str, reward: str, expected: str
) -> None:
    assert role(view.artifact(policy), view.artifact(reward)) == expected
