"""QRPO: its minimiser on a table, and its partition function."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor

from registry.methods import qrpo

REFERENCE = torch.tensor([0.1, 0.35, 0.25, 0.3], dtype=torch.float64)
QUANTILES = torch.tensor([0.45, 1.0, 0.1, 0.75], dtype=torch.float64)


def partition(beta: float) -> float:
    return float((REFERENCE.log() + QUANTILES / beta).logsumexp(0))


def test_the_loss_by_hand() -> None:
    # 0.8 - 0.5 * 1.2 - 0.5 * 0.1 = 0.15, and 0.3 - 0.6 + 0.5 * 0.4 = -0.1.
    found = qrpo.loss(torch.tensor([0.8, 0.3]), torch.tensor([0.1, -0.4]), 0.5, 1.2)
    assert found.tolist() == pytest.approx([0.0225, 0.01], rel=1e-5)


@pytest.mark.parametrize("beta", [0.1, 0.5, 2.0])
def test_the_tilted_policy_costs_nothing_in_any_row(beta: float) -> None:
    tilted = REFERENCE * (QUANTILES / beta).exp() / math.exp(partition(beta))
    assert tilted.sum() == pytest.approx(1)
    assert qrpo.loss(QUANTILES, (tilted / REFERENCE).log(), beta, partition(beta)).max() < 1e-28


@pytest.mark.parametrize("responses", [REFERENCE, torch.tensor([0.7, 0.1, 0.1, 0.1], dtype=torch.float64)])
def test_the_minimiser_is_the_tilted_policy_whoever_wrote_the_responses(responses: Tensor) -> None:
    beta = 0.4
    logits = REFERENCE.log().clone().requires_grad_()
    optimiser = torch.optim.LBFGS(
        [logits], max_iter=500, tolerance_grad=1e-14, tolerance_change=0, line_search_fn="strong_wolfe"
    )

    def expected_loss() -> Tensor:
        optimiser.zero_grad()
        log_ratios = logits.log_softmax(0) - REFERENCE.log()
        loss = (responses * qrpo.loss(QUANTILES, log_ratios, beta, partition(beta))).sum()
        loss.backward()
        return loss

    optimiser.step(expected_loss)
    tilted = (REFERENCE.log() + QUANTILES / beta).softmax(0)
    torch.testing.assert_close(logits.softmax(0), tilted, rtol=0, atol=1e-6)


@pytest.mark.parametrize("beta", [0.1, 0.5, 1.0, 5.0])
def test_the_partition_of_a_uniform_quantile_is_its_integral(beta: float) -> None:
    assert qrpo.identity_log_partition(beta) == pytest.approx(math.log(beta * (math.exp(1 / beta) - 1)), rel=1e-13)
    midpoints = (torch.arange(20_000, dtype=torch.float64) + 0.5) / 20_000
    assert qrpo.identity_log_partition(beta) == pytest.approx((midpoints / beta).exp().mean().log().item(), abs=1e-6)


@pytest.mark.parametrize("beta", [0.1, 0.5, 1.0])
def test_the_authors_approximation_leaves_out_one_logarithm(beta: float) -> None:
    left_out = qrpo.identity_log_partition(beta) - (math.log(beta) + 1 / beta)
    assert left_out == pytest.approx(math.log(1 - math.exp(-1 / beta)), rel=1e-9)


def test_the_partition_keeps_its_digits_at_both_ends() -> None:
    # Below: e^(1 / beta) is no double. Above: log(e^x - 1) - log x = x / 2 + x^2 / 24 - ... with x = 1 / beta.
    assert qrpo.identity_log_partition(1e-4) == pytest.approx(math.log(1e-4) + 1e4, rel=1e-15)
    for beta in (1e3, 1e6, 1e9):
        assert qrpo.identity_log_partition(beta) == pytest.approx(1 / (2 * beta) + 1 / (24 * beta**2), abs=3e-16)
