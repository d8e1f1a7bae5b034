"""What several processes or GPUs cannot train together is told before anything runs."""

from __future__ import annotations

from pathlib import Path

import pytest
import stages
import tiny
from refusals import refusals

STUDY = """\
models: {{base: {{source: {model}, precision: fp32}}}}
data:
  pairs: {{source: ./pairs.jsonl, format: preference}}
  prompts: {{source: ./prompts.jsonl, format: prompt}}
rewards: {{length: {{kind: length}}}}
execution: {{{execution}}}
stages:
  tuned: {{do: sft, from: base, data: pairs, batch_size: 6}}
  distilled: {{do: bond, from: base, prompts: prompts, reward: length}}
"""


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny.language_model(tmp_path_factory.mktemp("tiny") / "model")


def problems(folder: Path, model: Path, execution: str) -> list[tuple[str, str]]:
    tiny.write_lines(folder / "pairs.jsonl", [{"prompt": "a", "chosen": "b", "rejected": "c"}])
    tiny.write_lines(folder / "prompts.jsonl", [{"prompt": "a"}])
    view = stages.study(folder, STUDY.format(model=model, execution=execution))
    return [(".".join(map(str, path)), told) for path, told in view.problems()]


def test_a_batch_that_does_not_divide_among_the_processes(tmp_path: Path, model: Path) -> None:
    assert problems(tmp_path, model, "processes: 2") == []
    told = "`6` does not divide among 4 processes; change one of them"
    for execution in ("processes: 4", "gpus: 4"):
        assert problems(tmp_path, model, execution) == [("stages.tuned.batch_size", told)]


def test_a_model_to_be_split_over_gpus_that_are_not_there(tmp_path: Path, model: Path) -> None:
    for gpus in (0, 1):
        told = f"`deepspeed` splits a model over GPUs, and a stage has {gpus}; set `gpus`, or leave it out"
        assert problems(tmp_path, model, f"sharding: deepspeed, gpus: {gpus}") == [("execution.sharding", told)]


def test_a_policy_whose_anchor_fsdp_would_not_split(tmp_path: Path, model: Path) -> None:
    told = "`fsdp` does not split the anchor that `distilled` keeps beside its policy; use `ddp` or `deepspeed`"
    assert problems(tmp_path, model, "sharding: fsdp, gpus: 2") == [("execution.sharding", told)]


@pytest.mark.parametrize("processes", [1, 3])
def test_gpus_and_processes_of_other_numbers(tmp_path: Path, model: Path, processes: int) -> None:
    text = STUDY.format(model=model, execution=f"gpus: 2, processes: {processes}")
    assert refusals(tmp_path, f"version: 1\nname: s\nseed: 1\n{text}") == [
        f"execution  `processes: {processes}` do not fit `gpus: 2`: each GPU has a process of its own; leave `processes` out"
    ]
