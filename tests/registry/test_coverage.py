"""How often intervals hold the truth, over simulated studies whose truth is known.

A study has policies with four samples a prompt: rewards are normal with variance 1, and by how much ours lie above theirs is
0.5 on average and varies over prompts with variance 1, normally or exponentially (skewness 2). The truth of a difference is 0.5,
and that of a win rate the mean of Phi(gap / sqrt 2) over the gaps.
"""

from __future__ import annotations

import numpy as np
import pytest
from numpy.typing import NDArray
from scipy.integrate import quad
from scipy.special import softmax
from scipy.stats import norm

from registry.methods.comparison import interval, over_seeds, win_rates
from registry.methods.perplexity import perplexity

pytestmark = pytest.mark.slow

GAP = 0.5
WIN_RATE = {
    "normal": norm.cdf(GAP / 3**0.5),
    "exponential": quad(lambda x: np.exp(-x) * norm.cdf((x - 1 + GAP) / 2**0.5), 0, np.inf)[0],
}


@pytest.mark.parametrize(
    ("effect", "prompts"), [("normal", 24), ("normal", 48), ("exponential", 48), ("exponential", 192)]
)
def test_intervals_of_95_percent_hold_the_truth_in_93_to_97_percent_of_studies(effect: str, prompts: int) -> None:
    """By 3,000 studies with 999 resamples each:

    | effect      | prompts | difference | win rate |
    | normal      | 24      | 94.8 %     | 95.8 %   |
    | normal      | 48      | 95.0 %     | 95.5 %   |
    | exponential | 24      | 93.8 %     | 95.3 %   |
    | exponential | 48      | 94.3 %     | 94.8 %   |
    | exponential | 96      | 94.4 %     | 95.0 %   |
    | exponential | 192     | 95.2 %     | 95.3 %   |
    """
    generator = np.random.default_rng(prompts)
    studies = 1_000
    held = {"difference": 0, "win rate": 0}
    for study in range(studies):
        varying = generator.normal(0, 1, prompts) if effect == "normal" else generator.exponential(1, prompts) - 1
        ours = (GAP + varying)[:, None] + generator.normal(size=(prompts, 4))
        theirs = generator.normal(size=(prompts, 4))
        for name, values, truth in (
            ("difference", (ours - theirs).mean(axis=1), GAP),
            ("win rate", win_rates(ours, theirs), WIN_RATE[effect]),
        ):
            found = interval(values, confidence=0.95, resamples=999, seed=study)
            held[name] += found.low <= truth <= found.high
    assert 0.93 <= held["difference"] / studies <= 0.97
    assert 0.93 <= held["win rate"] / studies <= 0.97


def test_a_policy_against_itself_wins_one_half_and_against_its_twin_within_the_interval() -> None:
    generator = np.random.default_rng(3)
    studies, held = 1_000, 0
    for study in range(studies):
        prompts = generator.normal(0, 5, (48, 1))
        ours, theirs = (prompts + generator.normal(size=(48, 4)) for _ in range(2))
        assert interval(win_rates(ours, ours), confidence=0.95, resamples=999, seed=study) == (0.5, 0.5, 0.5)
        found = interval(win_rates(ours, theirs), confidence=0.95, resamples=999, seed=study)
        held += found.low <= 0.5 <= found.high
    assert 0.93 <= held / studies <= 0.97


def test_intervals_of_a_divergence_hold_it_as_often_but_by_k3_less() -> None:
    """Answers are one token of six; the reference draws each alike, the policy of a prompt has normal logits. By 3,000 such
    studies: k1 94.5 %, Rao-Blackwell 94.5 %, and k3, whose rare large terms few studies meet, 89.2 %."""
    generator = np.random.default_rng(5)
    studies, prompts, tokens = 1_000, 48, 6

    def policies(count: int) -> NDArray[np.float64]:
        return np.asarray(softmax(generator.normal(size=(count, tokens)), axis=1))

    def exact(p: NDArray[np.float64]) -> NDArray[np.float64]:
        return np.asarray((p * np.log(p * tokens)).sum(axis=1))

    truth = exact(policies(1_000_000)).mean()
    held = {"k1": 0, "k3": 0, "Rao-Blackwell": 0}
    for study in range(studies):
        p = policies(prompts)
        drawn = (generator.random((prompts, 4, 1)) > p.cumsum(axis=1)[:, None, :-1]).sum(axis=2)
        log_ratio = np.log(np.take_along_axis(p, drawn, axis=1) * tokens)
        for name, values in (
            ("k1", log_ratio.mean(axis=1)),
            ("k3", (np.exp(-log_ratio) - 1 + log_ratio).mean(axis=1)),
            ("Rao-Blackwell", exact(p)),
        ):
            found = interval(values, confidence=0.95, resamples=999, seed=study)
            held[name] += found.low <= truth <= found.high
    assert 0.86 <= held.pop("k3") / studies <= 0.92
    assert all(0.93 <= count / studies <= 0.97 for count in held.values()), held


def test_intervals_of_a_perplexity_hold_it_as_often() -> None:
    """Log-probabilities of tokens are normal about a mean of -2 that varies over prompts, as the numbers of tokens do. By 3,000
    such studies of 48 prompts 93.8 %."""
    generator = np.random.default_rng(7)
    studies, held = 1_000, 0
    for study in range(studies):
        tokens = generator.integers(8, 65, 48)
        of_prompts = generator.normal(-2, 0.5, 48)
        log_probs = tokens * of_prompts + np.sqrt(tokens) * generator.normal(size=48)
        found = perplexity(log_probs, tokens.astype(float), confidence=0.95, resamples=999, seed=study)
        held += found.low <= np.exp(2) <= found.high
    assert 0.93 <= held / studies <= 0.97


@pytest.mark.parametrize("spread", [0.0, 0.25, 1.0])
@pytest.mark.parametrize(("seeds", "at_least"), [(3, 0.91), (5, 0.93), (10, 0.93)])
def test_over_seeds_too_intervals_hold_the_truth_however_much_seeds_differ(
    seeds: int, at_least: float, spread: float
) -> None:
    """`spread` is the deviation between seeds for one of 1 between prompts. In 4,000 such studies: 92 to 95 % with three seeds, 93
    to 96 % with five and with ten; the model of one seed has an interval that says nothing of another's."""
    generator = np.random.default_rng(seeds)
    studies, held = 1_000, 0
    for _ in range(studies):
        of_seeds = generator.normal(0, spread, (seeds, 1)) if spread else 0.0
        values = of_seeds + generator.normal(0, 1, 48) + generator.normal(0, 0.5, (seeds, 48))
        found = over_seeds(values, confidence=0.95)
        held += found.low <= 0 <= found.high
    assert at_least <= held / studies <= 0.97
