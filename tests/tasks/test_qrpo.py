"""QRPO as a stage: its targets, where it starts, and where it goes."""

from __future__ import annotations

import json
import math
from collections.abc import Callable
from pathlib import Path

import pytest
import stages
import torch
from textbook import LORA, METHODS, PAIRS, STILL, Lab, mean, qrpo_by_hand, qrpo_loss

from specs.problems import UserError
from tasks import train_qrpo

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def lab(tmp_path_factory: pytest.TempPathFactory) -> Lab:
    return Lab(tmp_path_factory.mktemp("lab"))


@pytest.mark.parametrize(
    ("transform", "phi"),
    [
        ("{kind: best_of_n, t: 10.0}", lambda u, _: math.exp(10 * (u - 1))),
        ("{kind: log}", lambda u, among: math.log((among * u + 0.5) / (among + 1))),
    ],
)
def test_qrpo_regresses_on_what_a_transform_makes_of_the_calibrated_reward(
    lab: Lab, transform: str, phi: Callable[[float, int], float]
) -> None:
    built = lab.train(f"{METHODS['qrpo']}, {STILL}, {LORA}, transform: {transform}")
    rows = qrpo_by_hand(lab, lab.causal(), 0.5, phi)
    assert built.metrics["train/first_loss"] == pytest.approx(qrpo_loss(rows, 0.5), rel=1e-5)
    assert built.metrics["responses"] == sum(map(len, rows))


def test_the_log_partition_is_that_of_each_prompts_own_rollouts(lab: Lab) -> None:
    built = lab.train(f"{METHODS['qrpo']}, {STILL}, {LORA}")
    rows = qrpo_by_hand(lab, lab.causal(), 0.5)
    assert built.metrics["train/first_loss"] == pytest.approx(qrpo_loss(rows, 0.5), rel=1e-5)
    rollouts = [json.loads(line)["rewards"] for line in cal_of(lab)]
    assert len({len(set(row)) for row in rollouts}) > 1  # more ties to one prompt than to another
    ranks = [[(sum(x < r for x in row) + (row.count(r) - 1) / 2) / 7 for r in row] for row in rollouts]
    log_z = [math.log(mean([math.exp(u / 0.5) for u in row])) for row in ranks]
    assert built.metrics["log_partition"] == pytest.approx(mean(log_z), rel=1e-9)
    assert built.metrics["share_without_signal"] == mean([len(set(row)) == 1 for row in rollouts])


def cal_of(lab: Lab) -> list[str]:
    folder = lab.study().artifact("cal").folder
    assert folder is not None
    return (folder / "calibration.jsonl").read_text().splitlines()


def test_where_all_rollouts_tie_nothing_is_to_be_learnt(lab: Lab) -> None:
    stages_of = """\
  tied: {do: calibrate, reward: even, reference: base, prompts: prompts, samples: 8, max_new_tokens: 5}
  made: {do: qrpo, from: base, data: rolls, reward: tied, beta: 0.05, learning_rate: 1e-3, batch_size: 16}
"""
    view = lab.study(stages_of)
    stages.build(view, "tied")
    built = stages.build(view, "made", micro_batch=16)
    assert built.metrics["share_without_signal"] == 1
    assert built.metrics["log_partition"] == pytest.approx(0.5 / 0.05)
    assert built.metrics["train/first_loss"] == pytest.approx(0, abs=1e-9)


def test_prompts_that_were_not_calibrated_are_told_before_anything_is_trained(
    lab: Lab, monkeypatch: pytest.MonkeyPatch
) -> None:
    strangers = [{"prompt": f"Stranger {i}", "chosen": "ab", "rejected": "c"} for i in (0, 1, 1)]
    lab.write("strangers", [*PAIRS, *strangers])
    monkeypatch.setattr(train_qrpo, "load_start", lambda job: pytest.fail("a model was loaded"))
    with pytest.raises(UserError) as told:
        lab.train(f"do: qrpo, from: base, data: pairs, reward: cal, {STILL}, {LORA}", pairs="strangers")
    assert str(told.value) == (
        "2 of the 13 prompts of `pairs` were not calibrated by `cal`, and each needs a log-partition of its own; name "
        "them in the `prompts` of `cal`, or leave them out"
    )


def test_qrpo_learns_from_both_sides_of_pairs_too(lab: Lab) -> None:
    built = lab.train(f"do: qrpo, from: base, data: pairs, reward: cal, {STILL}, {LORA}")
    assert (built.metrics["rows"], built.metrics["responses"]) == (11, 22)
    assert built.logged("train/log_ratio") == [(1, pytest.approx(0, abs=1e-5))]


@pytest.mark.parametrize("lora", [LORA, "lora: null"])
@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_training_starts_at_the_reference_whatever_the_model_drops_out(
    tmp_path: Path, precision: str, lora: str
) -> None:
    lab = Lab(tmp_path, attention_dropout=0.5)
    fields = f"{METHODS['qrpo']}, learning_rate: 1e-9, batch_size: 4, {lora}"
    built = lab.train(fields, precision=precision)
    assert [ratio for _, ratio in built.logged("train/log_ratio")] == pytest.approx([0, 0, 0], abs=2e-3)


def test_qrpo_moves_log_ratios_to_the_rewards_less_the_log_partition(lab: Lab) -> None:
    beta = 0.5
    built = lab.train(f"{METHODS['qrpo']}, learning_rate: 5e-3, batch_size: 4, epochs: 20.0, {LORA}")
    before, after = (qrpo_by_hand(lab, causal, beta) for causal in (lab.causal(), lab.causal(built)))
    assert qrpo_loss(after, beta) < 0.05 * qrpo_loss(before, beta)
    ratios, wanted = torch.tensor([pair for row in after for pair in row], dtype=torch.float64).T
    assert float((ratios - wanted).abs().mean()) < 0.25 * float(wanted.abs().mean())
    assert float(torch.corrcoef(torch.stack([ratios, wanted]))[0, 1]) > 0.9
