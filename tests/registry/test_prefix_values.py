"""Prefix values fitted to convergence on a policy small enough to enumerate: two tokens, three steps, eight answers."""

from __future__ import annotations

import itertools
import math

import pytest
import torch
from torch import Tensor

from registry.methods.prefix_values import (
    equal_length_prefixes,
    expected_value,
    fudge_loss,
    prefix_preference_loss,
    q_loss,
    q_targets,
)

GENERATOR = torch.Generator().manual_seed(0)
STEPS = 3
ANSWERS = torch.tensor(list(itertools.product(range(2), repeat=STEPS)))
MASK = torch.ones(8, STEPS, dtype=torch.bool)
ENDS = MASK & (torch.arange(STEPS) == STEPS - 1)
REWARD = torch.randn(8, generator=GENERATOR, dtype=torch.float64)

# A table of values has 15 rows: the empty prefix is 0, and the prefixes which add a token to row n are 2n + 1, 2n + 2.
# POLICY holds the probabilities of the next token after each of the seven prefixes that have one.
POLICY = torch.randn(7, 2, generator=GENERATOR, dtype=torch.float64).softmax(-1)
CHILDREN = 2 * torch.arange(7)[:, None] + torch.tensor([1, 2])
ROWS = torch.zeros(8, STEPS + 1, dtype=torch.long)
for _t in range(STEPS):
    ROWS[:, _t + 1] = CHILDREN[ROWS[:, _t], ANSWERS[:, _t]]
PREFIXES = ROWS[:, 1:]
# After a last token there is no next one; the rows looked up there are never used.
NEXT = CHILDREN[PREFIXES.clamp(max=6)]
NEXT_LOG_PROBS = POLICY[PREFIXES.clamp(max=6)].log()


def answers_of(policy: Tensor) -> Tensor:
    """The probability of each answer."""
    return policy[ROWS[:, :STEPS], ANSWERS].prod(1)


def values_by(fold) -> Tensor:
    """The table that holds an answer's reward at its end and `fold(probabilities, values)` of its children before."""
    table = torch.zeros(15, dtype=torch.float64)
    table[ROWS[:, STEPS]] = REWARD
    for row in reversed(range(7)):
        table[row] = fold(POLICY[row], table[CHILDREN[row]])
    return table


VALUES = values_by(lambda p, v: (p * v).sum())  # V*


def fit(weights: Tensor, losses) -> Tensor:
    """The values of the 14 prefixes of a token or more that minimise the weighted losses of the eight answers."""
    empty = torch.zeros(15, dtype=torch.float64, requires_grad=True)
    slope = torch.autograd.grad((weights * losses(empty)).sum(), empty)[0]
    curvature = torch.autograd.functional.hessian(lambda table: (weights * losses(table)).sum(), empty)
    return -torch.linalg.solve(curvature[1:, 1:], slope[1:])  # quadratic: one Newton step is the whole fit


def test_fudge_on_the_references_answers_finds_their_expected_reward() -> None:
    found = fit(answers_of(POLICY), lambda table: fudge_loss(table[PREFIXES], REWARD, MASK))
    torch.testing.assert_close(found, VALUES[1:], rtol=0, atol=1e-14)


def test_fudge_on_another_policys_answers_finds_the_value_under_that_policy() -> None:
    found = fit(torch.full((8,), 1 / 8), lambda table: fudge_loss(table[PREFIXES], REWARD, MASK))
    assert found[0].item() == pytest.approx(REWARD[:4].mean().item())  # after token 0, all four ends alike
    assert (found - VALUES[1:]).abs().max() > 0.1


def test_cd_q_finds_the_same_values_from_any_policys_answers() -> None:
    table = torch.zeros(15, dtype=torch.float64, requires_grad=True)
    for _ in range(200):  # each prefix of one, two and three tokens is in 4, 2 and 1 answers
        targets = q_targets(expected_value(table[NEXT], NEXT_LOG_PROBS), REWARD, ENDS)
        loss = q_loss(table[PREFIXES], targets, MASK).sum()
        with torch.no_grad():
            table -= 0.25 * torch.autograd.grad(loss, table)[0]
    torch.testing.assert_close(table.detach()[1:], VALUES[1:], rtol=0, atol=1e-12)


def test_the_table_has_no_bellman_residual_and_the_reference_no_advantage() -> None:
    targets = q_targets(expected_value(VALUES[NEXT], NEXT_LOG_PROBS), REWARD, ENDS)
    torch.testing.assert_close(targets, VALUES[PREFIXES], rtol=0, atol=1e-15)
    torch.testing.assert_close((POLICY * VALUES[CHILDREN]).sum(1), VALUES[:7], rtol=0, atol=1e-15)
    assert VALUES[0].item() == pytest.approx((answers_of(POLICY) * REWARD).sum().item())


@pytest.mark.parametrize("strength", [0.0, 0.5, 1.3])
def test_the_best_step_is_worth_the_logarithm_of_its_partition(strength: float) -> None:
    # At every prefix: strength times the advantage less the divergence, at pi in proportion to pi_ref e^(strength V*).
    advantages = VALUES[CHILDREN] - VALUES[:7, None]
    tilted = (POLICY.log() + strength * VALUES[CHILDREN]).softmax(1)
    objective = (tilted * (strength * advantages - (tilted / POLICY).log())).sum(1)
    torch.testing.assert_close(objective, (POLICY * (strength * advantages).exp()).sum(1).log(), rtol=0, atol=1e-15)


def test_steps_by_expected_reward_fall_short_of_the_tilt_over_answers_and_soft_values_reach_it() -> None:
    strength, reference = 1.3, answers_of(POLICY)
    partition = (reference * (strength * REWARD).exp()).sum()

    def steps(values: Tensor) -> Tensor:
        return answers_of((POLICY.log() + strength * values[CHILDREN]).softmax(1))

    def objective(answers: Tensor) -> Tensor:
        return (answers * (strength * REWARD - (answers / reference).log())).sum()

    soft = values_by(lambda p, v: (p.log() + strength * v).logsumexp(0) / strength)
    tilt = reference * (strength * REWARD).exp() / partition
    torch.testing.assert_close(steps(soft), tilt, rtol=0, atol=1e-15)
    assert objective(steps(soft)).item() == pytest.approx(partition.log().item(), abs=1e-14)
    assert objective(steps(VALUES)) < partition.log() - 1e-5


def test_fudge_by_hand_ends_at_the_mask() -> None:
    values = torch.tensor([[1.0, 3.0, 99.0], [0.0, 0.0, 2.0]])
    mask = torch.tensor([[True, True, False], [True, True, True]])
    # ((1 - 2)^2 + (3 - 2)^2) / 2 and (1 + 1 + 9) / 2.
    assert fudge_loss(values, torch.tensor([2.0, -1.0]), mask).tolist() == [1, 5.5]


def test_a_target_is_the_reward_at_the_end_and_elsewhere_the_references_mean_of_what_may_come() -> None:
    next_values = torch.tensor([[[4.0, 8.0, 50.0], [7.0, 7.0, 7.0]]], requires_grad=True)
    log_probs = torch.tensor([[[0.25, 0.75, 0.0], [0.5, 0.25, 0.25]]]).log()  # a token that cannot come
    found = q_targets(expected_value(next_values, log_probs), torch.tensor([-3.0]), torch.tensor([[False, True]]))
    assert found.tolist() == [[7, -3]]
    assert not found.requires_grad


def test_q_by_hand_ends_at_the_mask() -> None:
    values, targets = torch.tensor([[1.0, 2.0, 5.0]]), torch.tensor([[0.0, 4.0, -9.0]])
    assert q_loss(values, targets, torch.tensor([[True, True, False]])).tolist() == [2.5]


def test_prefixes_are_compared_as_far_as_both_answers_go() -> None:
    found = equal_length_prefixes(torch.tensor([3, 1, 2]), torch.tensor([2, 4, 0]), 4)
    assert found.int().tolist() == [[1, 1, 0, 0], [1, 0, 0, 0], [0, 0, 0, 0]]


def test_a_pairs_prefixes_share_one_judgement() -> None:
    chosen = torch.tensor([[1.0, 2.0, 7.0], [0.0, 0.0, 0.0], [5.0, 5.0, 5.0]])
    rejected = torch.tensor([[0.0, 4.0, 99.0], [0.0, 0.0, 0.0], [1.0, 1.0, 1.0]])
    mask = torch.tensor([[True, True, False], [True, True, True], [False, False, False]])
    first = (math.log1p(math.exp(-1)) + math.log1p(math.exp(2))) / 2
    found = prefix_preference_loss(chosen, rejected, mask).tolist()
    assert found == pytest.approx([first, math.log(2), 0])


def test_swapping_a_pair_adds_its_mean_margin() -> None:
    chosen, rejected = torch.randn(2, 4, 5, generator=GENERATOR, dtype=torch.float64)
    mask = torch.ones(4, 5, dtype=torch.bool)
    swapped = prefix_preference_loss(rejected, chosen, mask)
    torch.testing.assert_close(swapped, prefix_preference_loss(chosen, rejected, mask) + (chosen - rejected).mean(1))
