"""RAFT: what local and global ranking keep, and what fitting it exactly does to a policy."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
from numpy.typing import NDArray

from registry.methods.raft import best_of_all, best_of_each, kl_penalised

Array = NDArray[np.float64]
OUTCOMES = 2000


def all_usable(rewards: Array) -> NDArray[np.bool_]:
    return np.ones_like(rewards, dtype=bool)


def one_stage(policy: Array, k: int) -> Array:
    """A local stage fitted exactly to infinitely many prompts: outcomes in order of reward, F becomes F^k."""
    return np.diff(np.cumsum(policy) ** k, prepend=0.0)


def divergence(policy: Array, base: Array) -> float:
    kept = policy > 0
    return float((policy[kept] * np.log(policy[kept] / base[kept])).sum())


def test_local_ranking_keeps_the_first_best_usable_sample_of_each_prompt() -> None:
    rewards = np.array([[1.0, 3.0, 3.0], [5.0, 4.0, -1.0], [2.0, 2.0, 2.0], [0.0, 0.0, -7.0]])
    usable = np.array([[True, True, True], [False, True, True], [False, False, False], [False, False, True]])
    assert best_of_each(rewards, usable) == [(0, 1), (1, 1), (3, 2)]


def test_global_ranking_keeps_one_in_k_of_all_samples_drawn_best_first() -> None:
    rewards = np.array([[1.0, 9.0, 3.0], [5.0, 4.0, 3.0]])
    assert best_of_all(rewards, all_usable(rewards), 2) == [(0, 1), (1, 0), (1, 1)]
    assert best_of_all(rewards, all_usable(rewards), 4) == [(0, 1)]
    assert best_of_all(rewards, all_usable(rewards), 7) == []


def test_unusable_samples_count_as_drawn_and_are_never_kept() -> None:
    rewards = np.array([[1.0, 9.0, 3.0], [5.0, 4.0, 3.0]])
    usable = np.array([[True, False, True], [True, False, True]])
    assert best_of_all(rewards, usable, 2) == [(1, 0), (0, 2), (1, 2)]
    assert best_of_all(rewards, usable, 1) == [(1, 0), (0, 2), (1, 2), (0, 0)]


def test_less_than_one_sample_in_one_is_refused() -> None:
    with pytest.raises(ValueError, match="k is 0"):
        best_of_all(np.zeros((1, 1)), np.ones((1, 1), dtype=bool), 0)


@pytest.mark.parametrize("k", [1, 2, 3])
def test_a_local_stage_raises_the_distribution_function_to_the_power_k(k: int) -> None:
    policy, reward = np.array([0.1, 0.4, 0.3, 0.2]), np.array([-2.0, 0.0, 0.5, 4.0])
    draws = np.array(list(itertools.product(range(4), repeat=k)))  # every prompt that can be, by its probability
    kept = best_of_each(reward[draws], all_usable(draws))
    fitted = np.zeros(4)
    for prompt, sample in kept:
        fitted[draws[prompt, sample]] += policy[draws[prompt]].prod()
    np.testing.assert_allclose(fitted, one_stage(policy, k), atol=1e-15)


@pytest.mark.parametrize(("k", "printed"), [(2, [0.19315, 0.63629, 1.20444]), (4, [0.63629, 1.83509, 3.17447])])
def test_local_stages_compound_to_best_of_k_to_the_number_of_stages(k: int, printed: list[float]) -> None:
    base = np.full(OUTCOMES, 1 / OUTCOMES)
    quantile = (np.arange(OUTCOMES) + 0.5) / OUTCOMES
    policy = base
    for stage, expected in enumerate(printed, start=1):
        policy = one_stage(policy, k)
        n = k**stage
        np.testing.assert_allclose(policy, one_stage(base, n), atol=1e-15)
        assert divergence(policy, base) == pytest.approx(expected, abs=5e-6)
        assert divergence(policy, base) == pytest.approx(np.log(n) - (n - 1) / n, abs=5e-5)
        assert (policy * quantile).sum() == pytest.approx(n / (n + 1), abs=1e-5)


@pytest.mark.parametrize("k", [2, 4, 8])
def test_a_global_stage_is_flat_on_the_top_quantiles(k: int) -> None:
    rewards = np.random.default_rng(0).permutation(OUTCOMES).reshape(-1, 4) / OUTCOMES  # every outcome once
    kept = [rewards[pair] for pair in best_of_all(rewards, all_usable(rewards), k)]
    policy = np.zeros(OUTCOMES)
    policy[np.round(np.array(kept) * OUTCOMES).astype(int)] = 1 / len(kept)
    assert divergence(policy, np.full(OUTCOMES, 1 / OUTCOMES)) == pytest.approx(np.log(k))
    assert (policy * (np.arange(OUTCOMES) + 0.5) / OUTCOMES).sum() == pytest.approx(1 - 1 / (2 * k))


def test_local_ranking_ignores_increasing_maps_of_each_prompts_rewards() -> None:
    rewards = np.random.default_rng(1).normal(size=(6, 5))
    usable = np.random.default_rng(2).random((6, 5)) < 0.7
    scale, shift = np.array([[1.0, 2, 3, 4, 5, 6]]).T, np.array([[9.0, -9, 0, 4, 1, 7]]).T
    assert best_of_each(np.exp(scale * rewards) + shift, usable) == best_of_each(rewards, usable)


def test_global_ranking_keeps_only_the_prompt_whose_rewards_are_lifted() -> None:
    rewards = np.random.default_rng(3).normal(size=(4, 8))
    assert len({prompt for prompt, _ in best_of_all(rewards, all_usable(rewards), 4)}) > 1
    rewards[1] += 100
    kept = best_of_all(rewards, all_usable(rewards), 4)
    assert sorted(kept) == [(1, sample) for sample in range(8)]


def test_a_constant_reward_keeps_the_samples_that_were_drawn_first() -> None:
    rewards = np.full((3, 4), 0.7)
    assert best_of_each(rewards, all_usable(rewards)) == [(0, 0), (1, 0), (2, 0)]
    assert best_of_all(rewards, all_usable(rewards), 2) == [(0, 0), (0, 1), (0, 2), (0, 3), (1, 0), (1, 1)]


def test_one_sample_a_prompt_keeps_the_policys_own_samples() -> None:
    rewards = np.random.default_rng(4).normal(size=(5, 1))
    assert best_of_each(rewards, all_usable(rewards)) == [(prompt, 0) for prompt in range(5)]
    base = np.array([0.2, 0.5, 0.3])
    np.testing.assert_allclose(one_stage(base, 1), base, atol=1e-16)


def test_with_one_sample_a_prompt_a_temperature_other_than_one_compounds() -> None:
    logits, temperature = np.array([0.3, -1.2, 2.0, 0.0]), 0.85

    def softmax(values: Array) -> Array:
        weights = np.exp(values)
        return np.asarray(weights / weights.sum())

    policy = softmax(logits)
    for _ in range(3):
        policy = softmax(np.log(policy) / temperature)  # what it samples is what it is fitted to
    np.testing.assert_allclose(policy, softmax(logits / temperature**3), atol=1e-15)


def test_the_penalty_is_beta_for_each_nat_gained_and_idle_in_the_first_round() -> None:
    rewards, log_probs = np.array([[1.0, 2.0]]), np.array([[-3.0, -5.0]])
    assert kl_penalised(rewards, log_probs, np.array([[-4.0, -4.0]]), 0.5).tolist() == [[0.5, 2.5]]
    assert kl_penalised(rewards, log_probs, log_probs, 7.0).tolist() == rewards.tolist()
