"""A small study in a folder of its own, whose Python reward says that it is at work and waits while a test has it wait."""

from __future__ import annotations

from pathlib import Path

import tiny

STUDY = """\
version: 1
name: small
seed: 3
models:
  base: {source: ./model, precision: fp32}
data:
  prompts: {source: ./prompts.jsonl, format: prompt, split: {train: 8, eval: 4}}
rewards:
  mine: {kind: python, target: my_reward:score}
stages:
  rolls: {do: sample, from: base, prompts: prompts.train, samples: 4, max_new_tokens: 8}
  pairs: {do: label, responses: rolls, reward: mine}
  rm: {do: reward_model, from: base, data: pairs}
  bon: {do: decode, method: best_of_n, from: base, reward: rm, n: 2}
"""
TABLE = """\
  table:
    do: evaluate
    policies: [base, bon]
    against: base
    prompts: prompts.eval
    rewards: [rm, mine]
    budget: {max_new_tokens: 8}
    resamples: 100
"""
# It says that it is at work, and gives no answer while there is a file `hold` beside it.
REWARD = """\
import os, time
from pathlib import Path

HERE = Path(__file__).parent

def score(prompts, responses):
    (HERE / f"scoring.{os.getpid()}").touch()
    while (HERE / "hold").exists():
        time.sleep(0.05)
    return [float(len(r)) for r in responses]
"""


def make_folder(folder: Path, study: str, name: str = "s.yaml") -> Path:
    folder.mkdir(exist_ok=True)
    tiny.language_model(folder / "model")
    tiny.write_lines(folder / "prompts.jsonl", [{"prompt": f"Tell me of number {i}"} for i in range(12)])
    (folder / "my_reward.py").write_text(REWARD)
    (folder / name).write_text(study)
    return folder
