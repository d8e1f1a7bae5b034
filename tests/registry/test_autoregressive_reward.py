"""GenARM: the loss of its reward model, and what decoding with that model is and is not."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor

from registry.methods.autoregressive_reward import preference_loss
from registry.methods.guided import combined

TOKENS, VOCABULARY = 3, 3


def random_model(seed: int) -> list[Tensor]:
    """Next-token probabilities after every prefix, one tensor [prefixes, vocabulary] for each length of prefix."""
    generator = torch.Generator().manual_seed(seed)
    return [
        torch.randn(VOCABULARY**t, VOCABULARY, generator=generator, dtype=torch.float64).softmax(-1)
        for t in range(TOKENS)
    ]


def sequences(model: list[Tensor]) -> Tensor:
    """The probability of every complete sequence."""
    joint = torch.ones(1, dtype=torch.float64)
    for level in model:
        joint = (joint[:, None] * level).flatten()
    return joint


def guided(base: list[Tensor], guides: list[tuple[float, list[Tensor]]]) -> list[Tensor]:
    """Decoding: the base times each guide to the power of its alpha, normalised after every prefix."""
    return [
        combined(level.log(), [(guide[t].log(), alpha) for alpha, guide in guides]).softmax(-1)
        for t, level in enumerate(base)
    ]


def assert_same(found: list[Tensor], expected: list[Tensor]) -> None:
    for ours, theirs in zip(found, expected, strict=True):
        torch.testing.assert_close(ours, theirs, rtol=0, atol=1e-15)


BASE, GUIDE = random_model(0), random_model(1)
UNIFORM = [torch.full_like(level, 1 / VOCABULARY) for level in BASE]


def test_equal_answers_cost_log_2_whatever_the_beta() -> None:
    log_probs = torch.tensor([-12.0, -0.5], dtype=torch.float64)
    assert preference_loss(log_probs, log_probs, 0.05).tolist() == pytest.approx([math.log(2)] * 2, abs=1e-15)


def test_one_nat_at_beta_one_half_costs_the_logistic_function_of_one_half() -> None:
    found = preference_loss(torch.tensor([-3.0]), torch.tensor([-4.0]), 0.5)
    assert found.item() == pytest.approx(-math.log(1 / (1 + math.exp(-0.5))), rel=1e-6)


def test_swapping_a_pair_adds_beta_times_its_margin() -> None:
    chosen, rejected = torch.tensor([[-7.0, -90.0, -3.0], [-9.0, -20.0, -3.1]], dtype=torch.float64)
    swapped = preference_loss(rejected, chosen, 0.3)
    torch.testing.assert_close(swapped, preference_loss(chosen, rejected, 0.3) + 0.3 * (chosen - rejected))


def test_hopeless_pairs_stay_finite() -> None:
    chosen = torch.tensor([-1e5], requires_grad=True)
    loss = preference_loss(chosen, torch.tensor([0.0]), 1.0)
    loss.sum().backward()
    assert loss.item() == 1e5 and chosen.grad is not None and chosen.grad.item() == -1


def test_the_model_learns_the_reward_behind_bradley_terry_preferences_up_to_a_constant() -> None:
    # Every reward has an autoregressive one in its class: pi_r in proportion to e^(r / beta).
    beta, reward = 0.5, torch.tensor([0.3, -1.0, 2.0, 0.0], dtype=torch.float64)
    preferred = torch.sigmoid(reward[:, None] - reward[None, :])
    logits = torch.zeros(4, dtype=torch.float64, requires_grad=True)
    optimiser = torch.optim.LBFGS(
        [logits], max_iter=500, tolerance_grad=1e-14, tolerance_change=0, line_search_fn="strong_wolfe"
    )

    def expected_loss() -> Tensor:
        optimiser.zero_grad()
        log_probs = logits.log_softmax(0)
        losses = preference_loss(log_probs.repeat_interleave(4), log_probs.repeat(4), beta)
        loss = (preferred.flatten() * losses).sum()
        loss.backward()
        return loss

    optimiser.step(expected_loss)
    torch.testing.assert_close(logits.softmax(0), (reward / beta).softmax(0), rtol=0, atol=1e-6)


def test_a_guide_without_weight_or_without_preference_leaves_the_base() -> None:
    assert_same(guided(BASE, [(0.0, GUIDE)]), BASE)
    assert_same(guided(BASE, [(1.7, UNIFORM)]), BASE)


@pytest.mark.parametrize("alpha", [0.5, 1.0, 2.0])
def test_a_guide_equal_to_the_base_lowers_the_temperature(alpha: float) -> None:
    assert_same(guided(BASE, [(alpha, BASE)]), [(level.log() / (1 / (1 + alpha))).softmax(-1) for level in BASE])


@pytest.mark.parametrize("beta", [0.5, 1.0, 2.0])
def test_a_base_that_is_uniform_leaves_the_guide_at_temperature_beta(beta: float) -> None:
    assert_same(guided(UNIFORM, [(1 / beta, GUIDE)]), [(level.log() / beta).softmax(-1) for level in GUIDE])


@pytest.mark.parametrize("alpha", [0.5, 1.0, 2.0])
def test_the_librarys_weighted_mean_at_its_low_temperature_is_the_product(alpha: float) -> None:
    library = [
        (combined(base.log(), [(guide.log(), alpha)], normalised=True) / (1 / (1 + alpha))).softmax(-1)
        for base, guide in zip(BASE, GUIDE, strict=True)
    ]
    assert_same(library, guided(BASE, [(alpha, GUIDE)]))


def test_equal_guides_share_their_weight() -> None:
    assert_same(guided(BASE, [(0.3, GUIDE), (0.9, GUIDE)]), guided(BASE, [(1.2, GUIDE)]))


@pytest.mark.parametrize("seed", range(5))
def test_decoding_by_tokens_is_not_the_product_over_sequences(seed: int) -> None:
    base, guide = random_model(10 + seed), random_model(20 + seed)

    def total_variation(alpha: float) -> float:
        product = sequences(base) * sequences(guide) ** alpha
        return float((sequences(guided(base, [(alpha, guide)])) - product / product.sum()).abs().sum() / 2)

    assert total_variation(0.0) < 1e-15
    assert all(1e-3 < total_variation(alpha) < 0.3 for alpha in (0.5, 1.0, 2.0))


def test_the_guide_that_is_target_over_base_after_every_prefix_recovers_the_target() -> None:
    target = random_model(2)
    ratio = [wanted / base for wanted, base in zip(target, BASE, strict=True)]
    guide = [level / level.sum(-1, keepdim=True) for level in ratio]
    assert_same(guided(BASE, [(1.0, guide)]), target)
