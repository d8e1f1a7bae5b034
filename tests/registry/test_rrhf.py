"""RRHF: its two terms by hand, what they ignore, and several queries at once."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from registry.methods import rrhf

LOG_PROBS = torch.tensor([[-4.0, -3.0, -10.0, -6.0], [-8.0, -1.0, -5.0, 0.0]], dtype=torch.float64)
LENGTHS = torch.tensor([[4, 2, 5, 2], [4, 1, 2, 0]])
REWARDS = torch.tensor([[0.5, 1.5, 2.5, -1.0], [3.0, 0.0, 1.0, 9.0]], dtype=torch.float64)
MASK = torch.tensor([[True, True, True, True], [True, True, True, False]])


def rank(scores: list[float], rewards: list[float]) -> float:
    return float(rrhf.ranking_loss(torch.tensor([scores]), torch.tensor([rewards]), torch.ones(1, len(scores)).bool()))


def whole(sft: rrhf.Sft = "sum", log_probs: Tensor = LOG_PROBS, rewards: Tensor = REWARDS) -> Tensor:
    return rrhf.loss(log_probs, LENGTHS, rewards, MASK, 1.0, sft)


def test_reversed_candidates_pay_for_every_pair() -> None:
    # p = (-1, -2, -3) against r = (1, 2, 3): 1 + 2 + 1.
    assert rank([-1, -2, -3], [1, 2, 3]) == 4


def test_one_candidate_equal_rewards_or_the_right_order_cost_nothing() -> None:
    assert rank([-2.0], [1.0]) == 0
    assert rank([-3, -1, -2], [5, 5, 5]) == 0
    assert rank([-3, -1, -2], [0.1, 7, 0.2]) == 0


def test_a_tie_makes_no_pair_and_leaves_the_others() -> None:
    # r = (1, 1, 2), p = (-1, -2, -4): 3 and 2, nothing between the first two.
    assert rank([-1, -2, -4], [1, 1, 2]) == 5


def test_a_violated_pair_is_pulled_by_one_nat_a_nat_from_both_ends() -> None:
    scores = torch.tensor([[-1.0, -3.0]], requires_grad=True)
    rrhf.ranking_loss(scores, torch.tensor([[0.0, 1.0]]), torch.ones(1, 2).bool()).sum().backward()
    assert scores.grad is not None and scores.grad.tolist() == [[1, -1]]


def test_an_equal_score_costs_nothing_and_pulls_nothing() -> None:
    scores = torch.tensor([[-1.0, -1.0]], requires_grad=True)
    rrhf.ranking_loss(scores, torch.tensor([[0.0, 1.0]]), torch.ones(1, 2).bool()).sum().backward()
    assert scores.grad is not None and scores.grad.tolist() == [[0, 0]]


def test_the_best_is_the_first_on_a_tie_and_never_a_masked_one() -> None:
    rewards = torch.tensor([[1.0, 3.0, 3.0], [0.0, -1.0, 9.0], [9.0, -2.0, -2.0]])
    mask = torch.tensor([[True, True, True], [True, True, False], [False, True, True]])
    assert rrhf.best(rewards, mask).tolist() == [1, 0, 1]


def test_the_whole_loss_by_hand() -> None:
    # First query: p = (-1, -1.5, -2, -3), r orders 3 < 0 < 1 < 2: 0.5 + 1 + 0.5; its best has -10 over 5 tokens.
    # Second: p = (-2, -1, -2.5), r orders 1 < 2 < 0: 1.5 + 1 + 0; its best has -8 over 4 tokens.
    assert whole("sum").tolist() == [2 + 10, 2.5 + 8]
    assert whole("mean").tolist() == [2 + 2, 2.5 + 2]
    padded = rrhf.loss(LOG_PROBS, LENGTHS, REWARDS, MASK, 1.0, "official_code", torch.tensor([20, 16]))
    assert padded.tolist() == [2 + 0.5, 2.5 + 0.5]
    assert rrhf.loss(LOG_PROBS, LENGTHS, REWARDS, MASK, 100.0, "sum").tolist() == [210, 258]


def test_a_single_candidate_is_plain_fine_tuning() -> None:
    one = torch.ones(1, 1)
    assert rrhf.loss(-7 * one, 3 * one.long(), one, one.bool(), 1.0, "sum").tolist() == [7]


def test_the_padded_width_is_asked_for_where_it_is_needed() -> None:
    with pytest.raises(ValueError, match="official_code"):
        whole("official_code")


def gradient(rewards: Tensor) -> Tensor:
    log_probs = LOG_PROBS.clone().requires_grad_()
    whole(log_probs=log_probs, rewards=rewards).sum().backward()
    assert log_probs.grad is not None
    return log_probs.grad


@pytest.mark.parametrize("increasing", [torch.exp, torch.atan, lambda r: 1e3 * r - 7])
def test_only_the_order_of_the_rewards_matters(increasing) -> None:
    assert torch.equal(whole(rewards=increasing(REWARDS)), whole())
    assert torch.equal(gradient(increasing(REWARDS)), gradient(REWARDS))


def test_a_masked_candidate_has_neither_weight_nor_gradient_though_it_has_no_token() -> None:
    found = gradient(REWARDS)
    assert found.isfinite().all() and found[1, 3] == 0


@pytest.mark.parametrize("reward", [-9.0, 9.0])
@pytest.mark.parametrize("score", [-50.0, 50.0])
def test_a_masked_candidate_makes_no_pair_whatever_it_holds(reward: float, score: float) -> None:
    found = rrhf.ranking_loss(
        torch.tensor([[-1.0, score, -2.0]]), torch.tensor([[0.0, reward, 1.0]]), torch.tensor([[True, False, True]])
    )
    assert found.tolist() == [1]


def test_queries_side_by_side_are_queries_apart() -> None:
    for query in range(2):
        apart = rrhf.loss(*(value[query : query + 1] for value in (LOG_PROBS, LENGTHS, REWARDS, MASK)), 1.0, "sum")
        assert apart.item() == whole()[query].item()


def test_the_order_of_the_candidates_is_of_no_account() -> None:
    generator = torch.Generator().manual_seed(0)
    for _ in range(10):
        order = torch.randperm(4, generator=generator)
        shuffled = rrhf.loss(*(value[:, order] for value in (LOG_PROBS, LENGTHS, REWARDS, MASK)), 1.0, "sum")
        torch.testing.assert_close(shuffled, whole())


def test_an_answer_repeated_twice_ranks_the_same_and_is_learnt_twice() -> None:
    twice = torch.tensor([[1, 1, 2, 1], [2, 1, 1, 1]])  # the best of each query
    doubled = rrhf.loss(LOG_PROBS * twice, LENGTHS * twice, REWARDS, MASK, 1.0, "sum")
    assert doubled.tolist() == [2 + 20, 2.5 + 16]
