"""Rewards of a person's own that misbehave: found by `check` without being run, or failing the stage that asks them."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import pytest
import tiny
from command import alignflow, stored, told

STUDY = """\
version: 1
name: small
models:
  base: {source: ./model, precision: fp32}
data:
  rows: {source: ./rows.jsonl, format: prompt}
rewards:
  mine: {kind: python, target: TARGET}
stages:
  rolls: {do: sample, from: base, prompts: rows, max_new_tokens: 4, samples: 2}
  pairs: {do: label, responses: rolls, reward: mine}
"""


@pytest.fixture
def folder(tmp_path: Path, home: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    tiny.language_model(tmp_path / "model")
    tiny.write_lines(tmp_path / "rows.jsonl", [{"prompt": f"Tell me of number {i}"} for i in range(2)])
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", list(sys.path))  # the spec's folder joins it
    return tmp_path


@pytest.mark.parametrize(
    ("target", "message"),
    [
        ("reward_of_nobody:score", "no module `reward_of_nobody` beside the spec ({folder}) or among the installed packages"),
        ("reward_split:score", "{folder}/reward_split.py:2: expected ':'"),
        ("reward_other:score", "`reward_other` defines no function `score`; did you mean `scores`?"),
        ("reward_package.inner.deeper:score", "no module `reward_package.inner.deeper` beside the spec ({folder})"),
        ("json.decoder.py:score", "no module `json.decoder.py` beside the spec"),
        ("math:exp", "no module `math` beside the spec"),
    ],
    ids=["no module", "syntax error", "no function", "deeper", "no package", "not of Python"],
)  # fmt: skip
def test_a_reward_that_cannot_be_found_is_told_at_its_target(
    folder: Path, capsys: pytest.CaptureFixture[str], target: str, message: str
) -> None:
    (folder / "reward_split.py").write_text("import math\ndef score(prompts, responses)\n    return []\n")
    (folder / "reward_other.py").write_text("def scores(prompts, responses): return []\n")
    (folder / "reward_package").mkdir()
    (folder / "reward_package" / "__init__.py").write_text("nothing\n")
    (folder / "reward_package" / "inner.py").write_text("def score(prompts, responses): return []\n")
    (folder / "s.yaml").write_text(STUDY.replace("TARGET", target))
    for verb in ("check", "run"):
        status, out, (line, count) = told(capsys, verb, "s.yaml")
        assert (status, out, count) == (2, [], "1 error; nothing was run.")
        assert line.startswith(f"s.yaml:8:32  rewards.mine.target  {message.format(folder=folder)}")
    assert stored(folder / "home") == []


@pytest.mark.slow
def test_a_reward_that_misbehaves_fails_the_stage_that_asks_it_and_no_other(folder: Path, prefect_server: str) -> None:
    wrong = {
        "raises": ("raise LookupError('no such colour')", "failed: LookupError: no such colour (reward_raises.py:2)"),
        "nan": ("return [float('nan')] * len(responses)", "returned nan for the response "),
        "few": ("return [1.0]", "returned 1 scores for 4 responses; it must return one each"),
        "none": ("return None", "failed: TypeError: 'NoneType' object is not iterable"),
        "words": ("return ['good'] * len(responses)", "failed: ValueError: could not convert string to float: 'good'"),
        "two_lines": ("raise ValueError('one\\ntwo')", "failed: ValueError: one two (reward_two_lines.py:2)"),
        "leaves": ("raise SystemExit(3)", "failed: SystemExit: 3 (reward_leaves.py:2)"),
    }
    text = STUDY.replace("TARGET", "reward_good:score")
    rewards = stages = ""
    for name, (body, _) in {"good": ("return [float(i) for i in range(len(responses))]", ""), **wrong}.items():
        (folder / f"reward_{name}.py").write_text(f"def score(prompts, responses):\n    {body}\n")
    for name in wrong:
        rewards += f"  {name}: {{kind: python, target: reward_{name}:score}}\n"
        stages += f"  by_{name}: {{do: label, responses: rolls, reward: {name}}}\n"
    (folder / "s.yaml").write_text(text.replace("stages:\n", f"{rewards}stages:\n") + stages)
    done = alignflow(folder, "run", "s.yaml", "--json", PREFECT_API_URL=prefect_server)
    assert done.returncode == 1
    ended = json.loads(done.stdout)
    assert {name for name, state in ended["stages"].items() if state == "done"} == {"rolls", "pairs"}
    for name, (_, message) in wrong.items():
        line = ended["failed"][f"by_{name}"]
        assert line.startswith(f"the reward `{name}` {message}")
        assert "\n" not in line
    assert done.stderr.count("started") == 2 + len(wrong)  # none of these is worth a second try
    assert stored(folder / "home") == ["label", "sample"]
