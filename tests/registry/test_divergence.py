"""Every estimator's mean is the divergence, over all answers of policies that can be written out."""

from __future__ import annotations

import itertools
import math

import numpy as np
import pytest
import torch

from registry.methods.divergence import blockwise_bound, k1, k3, sampled_token, token_kl
from registry.methods.draws import decoding_weights, inverse_cdf

P, Q = torch.tensor([0.5, 0.3, 0.2]), torch.tensor([0.4, 0.4, 0.2])


def mean_and_variance(values: torch.Tensor, weights: torch.Tensor) -> tuple[float, float]:
    mean = float((weights * values).sum())
    return mean, float((weights * (values - mean) ** 2).sum())


def test_the_estimators_of_one_token_have_their_printed_means_and_variances() -> None:
    exact = float(token_kl(P, Q.log()))
    assert exact == pytest.approx(0.0252672, abs=1e-7)
    for estimator, variance in ((k1, 0.0490864), (k3, 0.00025459)):
        mean, spread = mean_and_variance(estimator(P.double().log(), Q.double().log()), P.double())
        assert mean == pytest.approx(exact, abs=1e-7)
        assert spread == pytest.approx(variance, rel=1e-4)


def test_of_two_tokens_all_three_have_one_mean_and_rao_blackwell_may_have_the_larger_variance() -> None:
    """Reference .2/.8, then .5 or .3; policy .5/.5, then .5 or .98 (the first token's probabilities of 0)."""
    reference = [torch.tensor([0.2, 0.8]), torch.tensor([[0.5, 0.5], [0.3, 0.7]])]
    policy = [torch.tensor([0.5, 0.5]), torch.tensor([[0.5, 0.5], [0.98, 0.02]])]
    values: dict[str, list[float]] = {"rao_blackwell": [], "k1": [], "k3": []}
    weights = []
    for first, second in itertools.product((0, 1), repeat=2):
        steps = [(policy[0], reference[0], first), (policy[1][first], reference[1][first], second)]
        weights.append(math.prod(float(p[z]) for p, _, z in steps))
        values["rao_blackwell"].append(sum(float(token_kl(p, q.log())) for p, q, _ in steps))
        for name, estimator in (("k1", k1), ("k3", k3)):
            values[name].append(sum(float(estimator(p[z].log(), q[z].log())) for p, q, z in steps))
    found = {
        name: mean_and_variance(torch.tensor(some).double(), torch.tensor(weights).double())
        for name, some in values.items()
    }
    for mean, _ in found.values():
        assert mean == pytest.approx(0.76764, abs=1e-5)
    assert found["k1"][1] == pytest.approx(0.2422, abs=1e-4)
    assert found["rao_blackwell"][1] == pytest.approx(0.2965, abs=1e-4)


def test_what_a_rule_leaves_out_has_no_part_and_k3_loses_its_mass() -> None:
    logits = torch.tensor([[2.0, 1.0, 0.0, -1.0]])
    weights = decoding_weights(logits, 1.0, 2, 1.0)
    reference = logits.double().log_softmax(-1)
    kept = float(reference[0, :2].exp().sum())
    exact = float(token_kl(weights, reference))
    # Top-k of the reference itself: the divergence is minus the log of the mass that is kept.
    assert exact == pytest.approx(-math.log(kept), abs=1e-6)
    share = (weights[0, :2] / weights.sum()).double()
    chosen = torch.stack([sampled_token(weights, torch.tensor([z]))[0] for z in (0, 1)])
    assert torch.allclose(chosen, share.log())
    assert float((share * k1(chosen, reference[0, :2])).sum()) == pytest.approx(exact, abs=1e-6)
    assert float((share * k3(chosen, reference[0, :2])).sum()) == pytest.approx(exact - (1 - kept), abs=1e-6)


@pytest.mark.parametrize(
    ("temperature", "top_k", "top_p"), [(1.0, 0, 1.0), (0.7, 0, 1.0), (1.0, 3, 1.0), (1.3, 0, 0.8)]
)
def test_the_log_probability_of_a_token_is_how_often_it_is_drawn(temperature: float, top_k: int, top_p: float) -> None:
    logits = torch.tensor([1.0, 0.3, -0.2, -1.5, 0.9])
    u = (torch.arange(20_000, dtype=torch.float64) + 0.5) / 20_000
    drawn = inverse_cdf(logits.expand(len(u), -1), u, temperature=temperature, top_k=top_k, top_p=top_p)
    often = np.bincount(drawn.numpy(), minlength=5) / len(u)
    weights = decoding_weights(logits[None], temperature, top_k, top_p)
    for token in range(5):
        assert sampled_token(weights, torch.tensor([token])).exp() == pytest.approx(often[token], abs=1e-4)


def test_a_policy_is_at_no_distance_from_itself() -> None:
    logits = torch.randn(3, 7, generator=torch.Generator().manual_seed(0))
    assert token_kl(decoding_weights(logits, 1.0, 0, 1.0), logits.log_softmax(-1)).abs().max() < 1e-6


def test_a_block_that_ends_early_counts_as_a_whole_one() -> None:
    each = math.log(6) - 5 / 6
    bound = blockwise_bound(torch.tensor([1, 16, 17, 48]), branches=6, block=16)
    assert bound.tolist() == pytest.approx([each, each, 2 * each, 3 * each])
