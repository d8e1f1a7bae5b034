"""QRPO: its minimiser on a table, and the partition function of each prompt."""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence

import numpy as np
import pytest
import torch
from torch import Tensor

from registry.methods import qrpo
from registry.methods.calibration import mid_rank, self_excluded

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


def test_each_row_has_the_log_partition_of_its_prompt() -> None:
    # 0.8 - 0.5 * 1.2 - 0.5 * 0.1 = 0.15, and 0.3 - 0.5 * 0.2 + 0.5 * 0.4 = 0.4.
    found = qrpo.loss(torch.tensor([0.8, 0.3]), torch.tensor([0.1, -0.4]), 0.5, torch.tensor([1.2, 0.2]))
    assert found.tolist() == pytest.approx([0.0225, 0.16], rel=1e-5)


def of_rollouts(rewards: Sequence[float], beta: float) -> float:
    return qrpo.log_partition(self_excluded(np.array(rewards, dtype=float)), beta)


def test_the_partition_of_rollouts_by_hand() -> None:
    # Among the two others of 0, 1, 1: none below and none equal, one below and one equal, the same again.
    expected = math.log((1 + 2 * math.exp(0.75 / 0.5)) / 3)
    assert of_rollouts([0, 1, 1], 0.5) == pytest.approx(expected, abs=1e-12)


def test_rollouts_that_all_tie_ask_for_no_change_of_any_answer() -> None:
    beta, rank = 0.05, 0.5  # of an answer that ties with them
    assert beta * of_rollouts([7] * 16, beta) == pytest.approx(rank, abs=1e-12)
    # For ranks that were uniform it would be this far from the reference, in nats.
    levels = np.log(np.mean(np.exp(np.arange(17) / 16 / beta)))
    assert rank / beta - levels == pytest.approx(-7.504, abs=5e-4)


def test_without_ties_the_partition_is_one_number_whatever_the_rewards() -> None:
    found = [0.05 * of_rollouts(np.random.default_rng(seed).normal(size=16).tolist(), 0.05) for seed in range(3)]
    # The levels 0, 1/15, ..., 1: a geometric series with the ratio e^(4/3).
    series = 0.05 * math.log(math.expm1(16 * 4 / 3) / math.expm1(4 / 3) / 16)
    assert found == pytest.approx([series] * 3, abs=1e-12)
    assert series == pytest.approx(0.8767, abs=5e-5)


@pytest.mark.parametrize("beta", [0.1, 0.5, 2.0])
def test_the_partition_is_on_average_that_of_a_fresh_answer_among_one_rollout_less(beta: float) -> None:
    odds, rewards, rollouts = np.array([0.5, 0.3, 0.2]), np.array([0.0, 1.0, 1.0]), 4
    ours = theirs = 0.0
    for draws in itertools.product(range(3), repeat=rollouts):
        chance, values = odds[list(draws)].prod(), rewards[list(draws)]
        ours += chance * math.exp(of_rollouts(values.tolist(), beta))
        theirs += chance * math.exp(mid_rank(values[:1], values[1:])[0] / beta)
    assert ours == pytest.approx(theirs, rel=1e-12)


def integral(beta: float) -> float:
    """log of int_0^1 e^(u / beta) du = beta (e^(1 / beta) - 1)."""
    return math.log(beta * math.expm1(1 / beta))


@pytest.mark.parametrize("beta", [0.1, 0.5, 1.0, 5.0])
def test_with_many_rollouts_the_partition_is_the_integral(beta: float) -> None:
    few, many = (abs(of_rollouts(range(rollouts), beta) - integral(beta)) for rollouts in (20, 20_000))
    assert many < 3e-4 and many < few / 500


@pytest.mark.parametrize(("beta", "left_out"), [(0.1, 4.5e-5), (0.5, 0.145), (1.0, 0.459)])
def test_the_authors_approximation_leaves_out_one_logarithm(beta: float, left_out: float) -> None:
    theirs = math.log(beta) + 1 / beta
    assert theirs - integral(beta) == pytest.approx(-math.log(1 - math.exp(-1 / beta)), rel=1e-9)
    assert theirs - integral(beta) == pytest.approx(left_out, rel=1e-2)
    if beta > 0.1:  # below, as many rollouts differ as much from the integral
        assert theirs - of_rollouts(range(20_000), beta) == pytest.approx(left_out, rel=1e-2)


def test_a_small_beta_is_no_overflow() -> None:
    # e^(1 / beta) is no double, and only the highest of the 65 ranks counts.
    assert of_rollouts(range(65), 1e-5) == pytest.approx(1e5 - math.log(65), abs=1e-6)


@pytest.mark.parametrize("beta", [1e3, 1e6, 1e9])
def test_a_large_beta_leaves_the_mean_rank(beta: float) -> None:
    assert of_rollouts([3, 1, 1, 2, 5], beta) == pytest.approx(0.5 / beta, abs=1 / beta**2 + 3e-16)
