"""QRPO as a stage: its targets, where it starts, and where it goes."""

from __future__ import annotations

import math
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from textbook import LORA, METHODS, STILL, Lab, qrpo_by_hand, qrpo_loss

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def lab(tmp_path_factory: pytest.TempPathFactory) -> Lab:
    return Lab(tmp_path_factory.mktemp("lab"))


@pytest.mark.parametrize(
    ("transform", "phi"),
    [
        ("{kind: best_of_n, n: 4}", lambda u: math.exp(10 * (u - 1))),
        ("{kind: log}", lambda u: math.log((8 * u + 0.5) / 9)),
    ],
)
def test_qrpo_regresses_on_what_a_transform_makes_of_the_calibrated_reward(
    lab: Lab, transform: str, phi: Callable[[float], float]
) -> None:
    built = lab.train(f"{METHODS['qrpo']}, {STILL}, {LORA}, transform: {transform}")
    rows = qrpo_by_hand(lab, lab.causal(), 0.5, phi)
    assert built.metrics["train/first_loss"] == pytest.approx(qrpo_loss(rows, 0.5), rel=1e-5)
    assert built.metrics["responses"] == sum(map(len, rows))


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
