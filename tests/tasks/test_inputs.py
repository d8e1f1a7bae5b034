"""What stages read: prompts also out of preference pairs."""

from __future__ import annotations

import json
from pathlib import Path

import stages
import tiny

STUDY = """\
models: {base: {source: ./model, precision: fp32}}
data: {pairs: {source: ./pairs.jsonl, format: preference, split: {some: 4, rest: 1}}}
rewards: {words: {kind: length}}
stages:
  rolls: {do: sample, from: base, prompts: pairs.some, samples: 2, max_new_tokens: 4}
  labelled: {do: label, responses: rolls, reward: words}
  again: {do: sample, from: base, prompts: labelled, samples: 1, max_new_tokens: 4}
"""


def test_prompts_are_read_out_of_pairs_each_once(tmp_path: Path) -> None:
    tiny.language_model(tmp_path / "model")
    tiny.write_lines(tmp_path / "pairs.jsonl", [tiny.PAIRS[0] | {"chosen": "Fine."}, *tiny.PAIRS])
    view = stages.study(tmp_path, STUDY)

    def prompts_of(stage: str, file: str) -> list[str]:
        lines = (stages.build(view, stage).folder / file).read_text().splitlines()
        return [json.loads(line)["prompt"][-1]["content"] for line in lines]

    asked = prompts_of("rolls", "responses.jsonl")
    assert len(asked) == len(set(asked)) and set(asked) < {pair["prompt"] for pair in tiny.PAIRS}
    paired = prompts_of("labelled", "pairs.jsonl")
    assert prompts_of("again", "responses.jsonl") == list(dict.fromkeys(paired))
