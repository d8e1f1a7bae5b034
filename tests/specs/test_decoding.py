"""What a decoding rule does not take, said where it stands."""

from __future__ import annotations

from pathlib import Path

import pytest
from refusals import refusals

HEAD = """\
version: 1
name: s
models: {base: {source: ./m}, other: {source: ./n}}
data:
  pairs: {source: ./q.jsonl, format: preference}
  prompts: {source: ./p.jsonl, format: prompt}
rewards:
  joy: {kind: lexicon}
  outside: {kind: classifier, source: ./c}
  secret: {kind: classifier, source: ./c, use: evaluation}
stages:
  rolls: {do: sample, from: base, prompts: prompts}
  rm: {do: reward_model, from: base, data: pairs}
  arm: {do: autoregressive_reward_model, from: base, data: pairs}
  wide: {do: prefix_scorer, loss: cd_q, from: base, responses: rolls, reward: joy}
  narrow: {do: prefix_scorer, loss: cd_fudge, head: scalar, from: base, responses: rolls, reward: joy}
  cal: {do: calibrate, reward: rm, reference: base, prompts: prompts}
"""
CD = "method: controlled_decoding"


def problems(folder: Path, rule: str) -> list[str]:
    return refusals(folder, f"{HEAD}  a: {{do: decode, from: base, {rule}}}\n")


@pytest.mark.parametrize(
    "rule",
    [
        "method: args, reward: rm",
        "method: args, reward: outside, temperature: 0.7, candidates: 20, strength: 3, standardise: true",
        "method: args, reward: narrow",
        "method: genarm, guides: {arm: 1.0}",
        f"{CD}, scorers: {{wide: 1.0}}, strength: 2.0",
        f"{CD}, scorers: {{wide: 1.0, narrow: -0.5, rm: 1.0, joy: 2.0, cal: 1.0, arm: 0.1}}, block: 16, samples: 4",
        "method: mod, policies: {other: 0.5}",
        "method: worst_of_n, reward: rm, n: 4",
        "method: transfer_q, baseline: other, reward: joy",
        "method: cards, reward: rm, target: 2.0",
    ],
)
def test_a_rule_takes_what_can_guide_it(tmp_path: Path, rule: str) -> None:
    assert problems(tmp_path, rule) == []


@pytest.mark.parametrize(
    ("rule", "place", "words"),
    [
        ("method: args, reward: joy", "reward", "`joy` scores whole texts, and ARGS scores every candidate token"),
        (
            "method: args, reward: cal",
            "reward",
            "`cal` is a calibrated reward; this takes a reward model or prefix scorer",
        ),
        ("method: args, reward: secret", "reward", "`secret` is kept for evaluation"),
        (
            "method: cards, reward: joy, target: 1.0",
            "reward",
            "`joy` scores whole texts, and CARDS scores an answer as it",
        ),
        (
            "method: cards, reward: wide, target: 1.0",
            "reward",
            "`wide` values each next token, and CARDS asks for what was",
        ),
        (
            "method: genarm, guides: {rm: 1.0}",
            "guides.rm",
            "`rm` is a reward; this takes an autoregressive reward model",
        ),
        (
            f"{CD}, scorers: {{rm: 1.0}}",
            "scorers.rm",
            "`rm` scores whole texts; name a prefix scorer, or decode by `block`",
        ),
        (f"{CD}, scorers: {{narrow: 1.0}}", "scorers.narrow", "`narrow` has a scalar head"),
        (
            "method: mod, policies: {base: 0.5}",
            "policies.base",
            "`base` is `from`, whose power is one minus the weights",
        ),
        (f"{CD}, scorers: {{}}", "scorers", "1 at least"),
    ],
)
def test_what_cannot_guide_is_refused_with_the_reason(tmp_path: Path, rule: str, place: str, words: str) -> None:
    (line,) = problems(tmp_path, rule)
    assert line.startswith(f"stages.a.{place}  ") and words in line


@pytest.mark.parametrize(
    ("fields", "words"),
    [
        ("block: 8", "takes `block` and `samples` together"),
        ("samples: 4", "takes `block` and `samples` together"),
        ("block: 8, samples: 4, strength: 2.0", "the best block is the best at any `strength`"),
        ("block: 8, samples: 4, temperature: 0.0", "all ways to continue a block are one"),
    ],
)
def test_fields_that_would_do_nothing_are_refused(tmp_path: Path, fields: str, words: str) -> None:
    (line,) = problems(tmp_path, f"{CD}, scorers: {{wide: 1.0}}, {fields}")
    assert line.startswith("stages.a  ") and words in line


def test_a_rule_at_temperature_nought_gives_one_answer(tmp_path: Path) -> None:
    text = f"{HEAD}  a: {{do: decode, from: base, method: args, reward: rm}}\n"
    text += "  t: {do: calibrate, reward: rm, reference: a, prompts: prompts}\n"
    (line,) = refusals(tmp_path, text)
    assert "`a` gives one answer again and again" in line
