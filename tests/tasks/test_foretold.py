"""What is told of a stage before it runs, against what its process then held and left: real models, real processes."""

from __future__ import annotations

from pathlib import Path

import pytest
import stages
import tiny

from specs.execution import Execution
from tasks import child, divergence, foreseen, foretold, train_raft
from tasks.bodies import BODIES
from tasks.foretold import foresee
from tasks.view import View

STAGES = """
models: {base: {source: ./model, precision: fp32}}
data: {pairs: {source: ./pairs.jsonl, format: preference}, prompts: {source: ./prompts.jsonl, format: prompt}}
rewards: {length: {kind: length}}
stages:
  sample: {do: sample, from: base, prompts: prompts, max_new_tokens: 40, samples: 8}
  sft: {do: sft, from: base, data: pairs}
  all_weights: {do: sft, from: base, data: pairs, lora: null}
  reward_model: {do: reward_model, from: base, data: pairs}
  arm: {do: autoregressive_reward_model, from: base, data: pairs}
  dpo: {do: dpo, from: base, data: pairs}
  dpo_of_all: {do: dpo, from: base, data: pairs, lora: null}
  rl: {do: rl, from: base, prompts: prompts, reward: length, max_new_tokens: 40}
  rl_of_more: {do: rl, from: base, prompts: prompts, reward: length, max_new_tokens: 40, batch_size: 6}
  bond: {do: bond, from: base, prompts: prompts, reward: length, max_new_tokens: 40}
  raft: {do: raft, from: base, prompts: prompts, reward: length, max_new_tokens: 40, samples: 4}
  prefix: {do: prefix_scorer, loss: prefix_bt, from: base, data: pairs}
  thin: {do: sft, from: base, data: pairs, lora: {rank: 4, alpha: 8}}
  soup: {do: soup, experts: [sft, thin], weights: {grid: 3}}
  arc: {do: soup, experts: [sft, thin], rule: slerp}
  factors: {do: soup, experts: [sft, dpo], rule: factors}
"""
THREADS = Execution(threads=1)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model whose logits and layers weigh something beside the libraries."""
    folder = tmp_path_factory.mktemp("foretold")
    tiny.language_model(
        folder / "model", vocab_size=20_000, hidden_size=256, intermediate_size=704, num_hidden_layers=6,
        num_attention_heads=8, initializer_range=0.02,
    )  # fmt: skip
    rows = [{"prompt": "q" * (40 + i), "chosen": "a" * 40, "rejected": "b" * 35} for i in range(8)]
    tiny.write_lines(folder / "pairs.jsonl", rows)
    tiny.write_lines(folder / "prompts.jsonl", [{"prompt": "q" * 30 + str(i)} for i in range(8)])
    return folder


@pytest.fixture(scope="module")
def view(folder: Path) -> View:
    return stages.study(folder, STAGES)


@pytest.mark.slow
@pytest.mark.parametrize(
    "name", ["sample", "sft", "all_weights", "reward_model", "arm", "dpo", "rl", "bond", "raft", "prefix"]
)
def test_the_memory_and_the_files_of_a_stage_are_told_within_a_third(name: str, view: View, folder: Path) -> None:
    artifact = view.artifact(name)
    expected = foresee(artifact, THREADS, folder / "home")
    out = folder / f"{name}-out"
    out.mkdir()
    body = BODIES[artifact.entry.kind_name]
    request = child.Request(body, artifact, out, folder / f"{name}-scratch", THREADS, folder / f"{name}.log", None)
    result, _ = child.run_body(request, on_event=lambda event: None)
    assert expected.host == pytest.approx(result.spent["host_bytes"], rel=0.35)
    size = sum(path.stat().st_size for path in out.rglob("*") if path.is_file())
    if name != "sample":  # how long the answers of weights that nobody trained are is anybody's guess
        assert expected.disk == pytest.approx(size, rel=0.35)


def test_what_is_counted_on_stands_as_it_does_where_it_is_done() -> None:
    assert divergence.TOGETHER == foreseen.TOGETHER
    assert train_raft.HELD_OUT_SAMPLES == foretold.HELD_OUT_SAMPLES
    assert BODIES.keys() == foretold.KINDS.keys()


def test_more_rows_to_a_pass_hold_more_and_recomputing_holds_less(view: View, folder: Path) -> None:
    artifact, home = view.artifact("sft"), folder / "home"

    def held(**execution: object) -> float:
        return foresee(artifact, Execution(**execution), home).host

    assert held(micro_batch=1) < held(micro_batch=4) < held(micro_batch=8)
    assert held(gradient_checkpointing=True) < held()
    assert held(processes=2) == pytest.approx(2 * held(), rel=0.01)


def test_processes_on_a_processor_share_its_speed(view: View, folder: Path) -> None:
    one, two = (
        foresee(view.artifact("sft"), Execution(processes=processes), folder / "home").work.trained
        for processes in (1, 2)
    )
    assert one == pytest.approx(two, rel=0.1)


def test_adapters_hold_less_than_all_weights_in_training(view: View, folder: Path) -> None:
    by_adapter, whole = (foresee(view.artifact(name), THREADS, folder / "home") for name in ("sft", "all_weights"))
    assert by_adapter.host < whole.host
    assert by_adapter.disk < whole.disk / 10
    assert by_adapter.work.trained < whole.work.trained


def test_the_last_batch_of_a_pass_is_as_large_as_the_others_where_the_policy_draws_them(
    view: View, folder: Path
) -> None:
    """Eight prompts in batches of six are two batches, so twelve rows, where batches of eight are one."""
    eight, twelve = (foresee(view.artifact(name), THREADS, folder / "home").work for name in ("rl", "rl_of_more"))
    assert twelve.trained == pytest.approx(1.5 * eight.trained)


def test_a_soup_has_the_ranks_of_the_experts_that_are_in_it(view: View, folder: Path) -> None:
    names = ("soup[1,0]", "soup[0,1]", "soup[0.5,0.5]", "arc", "factors")
    sixteen, four, *mixed = (foresee(view.artifact(name), THREADS, folder / "home").disk for name in names)
    assert sixteen == 4 * four
    assert mixed == [sixteen + four, sixteen + four, sixteen]


def test_a_reference_is_held_beside_the_policy_only_where_all_weights_are_trained(view: View, folder: Path) -> None:
    weights = {
        name: foresee(view.artifact(name), THREADS, folder / "home").certain for name in ("sft", "dpo", "dpo_of_all")
    }
    assert weights["dpo"] == weights["sft"]
    assert weights["dpo_of_all"] == 2 * weights["sft"]
