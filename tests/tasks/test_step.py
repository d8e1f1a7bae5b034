"""A stage as a task of Prefect: what it finds of its earlier attempts."""

from __future__ import annotations

import json
import os
from pathlib import Path

import pytest
import tiny
from command import alignflow

STUDY = """\
version: 1
name: small
models: {base: {source: ./model, precision: fp32}}
data: {prompts: {source: ./prompts.jsonl, format: prompt}}
rewards: {mine: {kind: python, target: my_reward:score}}
stages: {cal: {do: calibrate, reward: mine, reference: base, prompts: prompts, samples: 4, max_new_tokens: 4}}
execution: {threads: 1}
"""
# The rollouts are drawn when it is asked.
REWARD = """\
import os, signal
from pathlib import Path

KILLED = Path(__file__).with_name("killed")

def score(prompts, responses):
    if not KILLED.exists():
        KILLED.touch()
        os.kill(os.getpid(), signal.SIGKILL)
    return [float(len(r)) for r in responses]
"""


@pytest.mark.slow
def test_a_forced_stage_that_is_killed_goes_on_with_what_it_had(tmp_path: Path) -> None:
    tiny.language_model(tmp_path / "model")
    tiny.write_lines(tmp_path / "prompts.jsonl", [{"prompt": "Why?"}, {"prompt": "Why not?"}])
    (tmp_path / "my_reward.py").write_text(REWARD)
    (tmp_path / "s.yaml").write_text(STUDY)
    environment = {"OMP_NUM_THREADS": "1", "PREFECT_HOME": os.environ["PREFECT_HOME"]}
    origins = []
    for _ in range(2):
        done = alignflow(tmp_path, "run", "s.yaml", "--force", "cal", **environment)
        assert done.returncode == 0, done.stderr
        (record,) = (tmp_path / ".alignflow" / "store").glob("*/*/record.json")
        origins.append(json.loads(record.read_bytes())["provenance"])
        left = record.parent.with_name(f".{record.parent.name}.scratch")
        left.mkdir()
        (left / "samples.jsonl").write_text("of an earlier build")
    # The second attempt takes up what the first has drawn; what lay there before the stage was forced goes.
    assert [(origin["attempt"], origin["resumed"]) for origin in origins] == [(2, True), (1, False)]
