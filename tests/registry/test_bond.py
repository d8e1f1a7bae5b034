"""J-BOND: every claim by exact enumeration of one sample of the policy and two of the anchor."""

from __future__ import annotations

import itertools
import math

import pytest
import torch
from torch import Tensor

from registry.methods import bond

# Four responses in order of reward.
ANCHOR = torch.tensor([0.2, 0.3, 0.4, 0.1], dtype=torch.float64)
REWARD = torch.tensor([-1.0, 0.0, 2.0, 2.5], dtype=torch.float64)
BELOW_OR_EQUAL = ANCHOR.cumsum(0)
BEST_OF_TWO = BELOW_OR_EQUAL**2 - (BELOW_OR_EQUAL - ANCHOR) ** 2
EXPECTED_REWARD = -math.log(16) * (1 - BELOW_OR_EQUAL) ** 2

# Rows: the policy's sample and the anchor's two, every combination once.
SAMPLE, FIRST, SECOND = torch.tensor(list(itertools.product(range(4), repeat=3))).T
BEST = torch.where(REWARD[SECOND] > REWARD[FIRST], SECOND, FIRST)
REWARDS = bond.backward_reward(REWARD[SAMPLE], torch.stack([REWARD[FIRST], REWARD[SECOND]], 1))


def expected_loss(logits: Tensor, mix: float, kl_weight: float) -> Tensor:
    """The loss of a row alone in its batch, weighted by the probability of its samples; for its gradient."""
    log_policy = logits.log_softmax(0)
    columns = (log_policy[SAMPLE], ANCHOR.log()[SAMPLE], log_policy[BEST], REWARDS)
    alone = torch.vmap(lambda *row: bond.loss(*row, mix=mix, kl_weight=kl_weight))
    losses = alone(*(column[:, None] for column in columns))[:, 0]
    weights = log_policy.detach().exp()[SAMPLE] * ANCHOR[FIRST] * ANCHOR[SECOND]
    return (weights * losses).sum()


def gradient(policy: Tensor, mix: float, kl_weight: float) -> Tensor:
    logits = policy.log().requires_grad_()
    return torch.autograd.grad(expected_loss(logits, mix, kl_weight), logits)[0]


def divergence(p: Tensor, q: Tensor) -> Tensor:
    return (p * (p / q).log()).sum()


def test_only_a_sample_strictly_below_both_of_the_anchors_is_punished() -> None:
    reward = torch.tensor([0.0, 1.0, 1.5, 3.0])
    anchors = torch.tensor([[1.0, 2.0]]).expand(4, 2)
    assert bond.backward_reward(reward, anchors).tolist() == pytest.approx([-math.log(16), 0, 0, 0])


def test_the_expected_reward_meets_log_p_at_the_median_and_at_the_top() -> None:
    weights = ANCHOR[FIRST] * ANCHOR[SECOND]
    found = torch.zeros(4, dtype=torch.float64).index_add(0, SAMPLE, weights * REWARDS)
    torch.testing.assert_close(found, EXPECTED_REWARD)
    assert BELOW_OR_EQUAL[1] == 0.5 and found[1] == pytest.approx(math.log(0.5))
    assert found[3] == 0 == BELOW_OR_EQUAL[3].log()


def test_a_baseline_is_the_mean_of_the_other_rows() -> None:
    assert bond.leave_one_out(torch.tensor([1.0, 2.0, 6.0])).tolist() == [4, 3.5, 1.5]
    assert bond.leave_one_out(torch.tensor([5.0])).tolist() == [0]
    # Where a process has two of three rows, the third counts too: (2 + 6) / 2 and (1 + 6) / 2.
    assert bond.leave_one_out(torch.tensor([1.0, 2.0]), torch.tensor([1.0, 2.0, 6.0])).tolist() == [4, 3.5]


def test_the_loss_by_hand() -> None:
    # Forward (3, 1); backward -2(-1) = 2 and 2(-4) = -8; KL (0.5)(-1), (-2)(-4).
    found = bond.loss(
        torch.tensor([-1.0, -4.0]),
        torch.tensor([-1.5, -2.0]),
        torch.tensor([-3.0, -1.0]),
        torch.tensor([2.0, -2.0]),
        mix=0.25,
        kl_weight=0.5,
    )
    assert found.tolist() == [0.75 * 3 + 0.25 * 2 - 0.25, 0.75 * 1 - 0.25 * 8 + 4]


def test_the_forward_part_alone_is_fitted_by_best_of_two_exactly() -> None:
    logits = ANCHOR.log().requires_grad_()
    optimiser = torch.optim.LBFGS(
        [logits], max_iter=200, tolerance_grad=1e-14, tolerance_change=0, line_search_fn="strong_wolfe"
    )

    def closure() -> Tensor:
        optimiser.zero_grad()
        loss = expected_loss(logits, mix=0.0, kl_weight=0.0)
        loss.backward()
        return loss

    optimiser.step(closure)
    torch.testing.assert_close(logits.softmax(0), BEST_OF_TWO, rtol=0, atol=1e-7)


@pytest.mark.parametrize("kl_weight", [0.0, 0.1, 1.0])
def test_the_backward_part_follows_the_gradient_of_its_expected_reward_and_divergence(kl_weight: float) -> None:
    policy = torch.tensor([0.4, 0.1, 0.2, 0.3], dtype=torch.float64)
    logits = policy.log().requires_grad_()
    probabilities = logits.softmax(0)
    objective = kl_weight * divergence(probabilities, ANCHOR) - (probabilities * EXPECTED_REWARD).sum()
    expected = torch.autograd.grad(objective, logits)[0]
    torch.testing.assert_close(gradient(policy, mix=1.0, kl_weight=kl_weight), expected)


def test_the_others_as_baseline_leave_the_expected_gradient_as_it_is() -> None:
    policy = torch.tensor([0.4, 0.1, 0.2, 0.3], dtype=torch.float64)
    logits = policy.log().requires_grad_()
    log_policy = logits.log_softmax(0)
    total = torch.zeros((), dtype=torch.float64)
    for batch in itertools.product(range(len(SAMPLE)), repeat=2):
        rows = list(batch)
        if not REWARDS[rows].any():
            continue  # nothing in the backward part
        sample = SAMPLE[rows]
        weight = (policy[sample] * ANCHOR[FIRST[rows]] * ANCHOR[SECOND[rows]]).prod()
        advantage = REWARDS[rows] - bond.leave_one_out(REWARDS[rows])
        losses = bond.loss(
            log_policy[sample], ANCHOR.log()[sample], log_policy[BEST[rows]], advantage, mix=1.0, kl_weight=0.0
        )
        total = total + weight * losses.mean()
    found = torch.autograd.grad(total, logits)[0]
    torch.testing.assert_close(found, gradient(policy, mix=1.0, kl_weight=0.0))


def test_the_backward_part_with_its_divergence_rests_at_the_anchor_tilted_by_its_reward() -> None:
    # KL(pi || anchor) - E_pi[r] is least at anchor e^r / Z, here anchor 16^-(1-p)^2 / Z.
    tilted = (ANCHOR.log() + EXPECTED_REWARD).softmax(0)
    assert gradient(tilted, mix=1.0, kl_weight=1.0).abs().max() < 1e-15
    assert gradient(ANCHOR, mix=1.0, kl_weight=1.0).abs().max() > 0.01
    assert divergence(BEST_OF_TWO, tilted) < divergence(BEST_OF_TWO, ANCHOR) / 5


@pytest.mark.parametrize("mix", [0.25, 0.5, 0.75])
def test_both_parts_together_bring_the_anchor_most_of_the_way_to_best_of_two(mix: float) -> None:
    policy = ANCHOR
    for _ in range(60):
        policy = (policy.log() - gradient(policy, mix=mix, kl_weight=mix)).softmax(0)
    assert divergence(BEST_OF_TWO, policy) < divergence(BEST_OF_TWO, ANCHOR) / 5
    assert divergence(policy, BEST_OF_TWO) < divergence(ANCHOR, BEST_OF_TWO) / 5
    assert (policy * REWARD).sum() > (ANCHOR * REWARD).sum()


def test_the_moving_average_closes_its_distance_by_the_rate_each_time_and_in_place() -> None:
    anchor, policy = torch.zeros(3, dtype=torch.float64, requires_grad=True), torch.full((3,), 8.0)
    storage = anchor.data_ptr()
    for _ in range(10):
        bond.moving_average([anchor], [policy], 0.02)
    torch.testing.assert_close(anchor.detach(), torch.full((3,), 8 * (1 - 0.98**10), dtype=torch.float64))
    assert anchor.data_ptr() == storage and policy.tolist() == [8, 8, 8]


def test_at_rate_0_the_anchor_stays_and_at_rate_1_it_is_the_policy() -> None:
    anchor, policy = [torch.tensor([1.0, 2.0]), torch.tensor([3.0])], [torch.tensor([0.3, 0.7]), torch.tensor([9.0])]
    bond.moving_average(anchor, policy, 0.0)
    assert [p.tolist() for p in anchor] == [[1, 2], [3]]
    bond.moving_average(anchor, policy, 1.0)
    assert all(torch.equal(a, p) for a, p in zip(anchor, policy, strict=True))


def test_parameter_lists_of_unequal_length_are_refused() -> None:
    with pytest.raises(ValueError, match="shorter"):
        bond.moving_average([torch.zeros(1)], [], 0.5)
