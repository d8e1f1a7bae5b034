"""Soups: what must hold of an average of experts, with numbers derived by hand."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from registry.methods.soup import Factor, average, check_weights, delta, factors, inner, slerp
from specs.spread import simplex

OUT, IN = 5, 7


def matrix(parts: list[Factor] | tuple[Factor, ...]) -> Tensor:
    return sum((part.scaling * part.B @ part.A for part in parts), torch.zeros(1))


def expert(seed: int, *, rank: int = 2, chain: int = 1, scaling: float = 1.5, modules: str = "ab") -> Any:
    """Random adapters in fp64, where a few ulps are 1e-15."""
    generator = torch.Generator().manual_seed(seed)

    def normal(*shape: int) -> Tensor:
        return torch.randn(*shape, generator=generator, dtype=torch.float64)

    return {name: [Factor(normal(rank, IN), normal(OUT, rank), scaling) for _ in range(chain)] for name in modules}


def near(found: Tensor, wanted: Tensor) -> None:
    torch.testing.assert_close(found, wanted, rtol=0, atol=1e-12)


# The exact average of updates


def test_delta_is_the_weighted_sum_of_updates_whatever_ranks_scalings_and_chains() -> None:
    experts = [expert(1, rank=1, scaling=0.3), expert(2, rank=3, scaling=2.0), expert(3, chain=2)]
    soup = delta(experts, [0.2, 0.5, 0.3])
    for name in "ab":
        [found] = soup[name]
        assert (len(found.A), found.scaling) == (1 + 3 + 2 * 2, 1.0)
        near(found.B @ found.A, sum(w * matrix(e[name]) for w, e in zip([0.2, 0.5, 0.3], experts, strict=True)))


def test_delta_of_two_updates_by_hand() -> None:
    # 1/4 * 2 * [1 0]' [1 2] = [[.5, 1], [0, 0]] and 3/4 * [0 1]' [4 0] = [[0, 0], [3, 0]].
    one = {"m": [Factor(torch.tensor([[1.0, 2.0]]), torch.tensor([[1.0], [0.0]]), 2.0)]}
    two = {"m": [Factor(torch.tensor([[4.0, 0.0]]), torch.tensor([[0.0], [1.0]]), 1.0)]}
    assert matrix(delta([one, two], [0.25, 0.75])["m"]).tolist() == [[0.5, 1.0], [3.0, 0.0]]


@pytest.mark.parametrize("rule", [delta, slerp])
def test_all_weight_on_one_expert_is_that_expert_to_the_bit(rule) -> None:
    experts = [expert(1), expert(2)]
    for corner, weights in enumerate([(1.0, 0.0), (0.0, 1.0)]):
        soup = rule(experts, weights)
        for name in "ab":
            [found], [wanted] = soup[name], experts[corner][name]
            assert torch.equal(found.A, wanted.A) and torch.equal(found.B, wanted.scaling * wanted.B)


def test_all_weight_on_one_expert_is_its_factors_to_the_bit() -> None:
    experts = [expert(1), expert(2)]
    soup = factors(experts, [0.0, 1.0])
    for name in "ab":
        [found], [wanted] = soup[name], experts[1][name]
        assert torch.equal(found.A, wanted.A) and torch.equal(found.B, wanted.B) and found.scaling == 1.5


@pytest.mark.parametrize("rule", [delta, factors, slerp])
def test_equal_experts_are_unchanged(rule) -> None:
    one = expert(1)
    for weights in [(0.3, 0.7), (0.5, 0.5)]:
        soup = rule([one, one], weights)
        for name in "ab":
            near(matrix(soup[name]), matrix(one[name]))


@pytest.mark.parametrize("rule", [delta, factors])
def test_the_order_of_the_experts_does_not_matter(rule) -> None:
    experts = [expert(seed) for seed in range(3)]
    weights = [0.2, 0.5, 0.3]
    there, back = rule(experts, weights), rule(experts[::-1], weights[::-1])
    for name in "ab":
        near(matrix(there[name]), matrix(back[name]))


def test_a_chain_of_adapters_is_the_sum_of_its_updates() -> None:
    chain = expert(1, chain=3)
    for name in "ab":
        near(matrix(delta([chain], [1.0])[name]), sum(matrix([part]) for part in chain[name]))


def test_an_expert_adds_nothing_where_it_has_no_adapter() -> None:
    one, two = expert(1, modules="a"), expert(2, modules="ab")
    soup = delta([one, two], [0.25, 0.75])
    near(matrix(soup["b"]), 0.75 * matrix(two["b"]))
    assert list(delta([one, two], [1.0, 0.0])) == ["a"]


def test_averaging_factors_misses_the_average_of_updates_by_the_product_of_the_differences() -> None:
    one, two = expert(1, scaling=1.0), expert(2, scaling=1.0)
    for weight in (0.1, 0.5, 0.9):
        apart, exact = (rule([one, two], [weight, 1 - weight]) for rule in (factors, delta))
        for name in "ab":
            [first], [second] = one[name], two[name]
            near(
                matrix(apart[name]) - matrix(exact[name]),
                -weight * (1 - weight) * (first.B - second.B) @ (first.A - second.A),
            )


def test_factors_agree_with_delta_where_one_side_is_shared() -> None:
    one = expert(1)
    two = {name: [Factor(one[name][0].A, B, 1.5)] for name, [(_, B, _)] in expert(2).items()}
    for name in "ab":
        near(matrix(factors([one, two], [0.3, 0.7])[name]), matrix(delta([one, two], [0.3, 0.7])[name]))


def test_low_precision_factors_are_averaged_in_fp32() -> None:
    experts = [{n: [Factor(p.A.bfloat16(), p.B.bfloat16(), 1.5)] for n, [p] in expert(s).items()} for s in (1, 2)]
    for rule in (delta, factors, slerp):
        [found] = rule(experts, [0.3, 0.7])["a"]
        assert found.A.dtype == found.B.dtype == torch.float32


# What a soup is worth


@given(st.floats(0, 1))
def test_a_linear_reward_of_a_linear_model_is_linear_in_the_weights(weight: float) -> None:
    experts = [expert(1), expert(2)]
    x, v = torch.arange(1.0, IN + 1).double(), torch.arange(1.0, OUT + 1).double()

    def reward(soup: Any) -> float:
        return float(v @ (matrix(soup["a"]) @ x))

    chord = weight * reward(experts[0]) + (1 - weight) * reward(experts[1])
    assert reward(delta(experts, [weight, 1 - weight])) == pytest.approx(chord, abs=1e-9)


def test_the_best_soup_for_quadratic_rewards_weighs_experts_by_preference_times_curvature() -> None:
    # R_i = -eta_i |theta - theta_i|^2: the best for sum mu_i R_i is lambda_i = mu_i eta_i / sum mu_j eta_j.
    thetas = [{"w": torch.tensor([1.0, 0.0, 2.0])}, {"w": torch.tensor([-1.0, 3.0, 0.0])}]
    preference, curvature = (0.5, 0.5), (1.0, 3.0)

    def reward(point: tuple[float, ...]) -> float:
        soup = average(thetas, point)["w"]
        distances = [float((soup - theta["w"]).square().sum()) for theta in thetas]
        return -sum(m * c * d for m, c, d in zip(preference, curvature, distances, strict=True))

    assert max(simplex(2, 101), key=reward) == (0.25, 0.75)


def test_a_concave_reward_of_a_soup_is_no_less_than_the_average_of_rewards() -> None:
    thetas = [{"w": torch.tensor([1.0, 0.0, 2.0])}, {"w": torch.tensor([-1.0, 3.0, 0.0])}]

    def reward(theta: Tensor) -> float:
        return -float((theta - 0.3).square().sum())

    for point in simplex(2, 11):
        chord = sum(w * reward(theta["w"]) for w, theta in zip(point, thetas, strict=True))
        assert reward(average(thetas, point)["w"]) >= chord - 1e-6


# The arc


def along(angle: float, length: float = 1.0) -> Any:
    """An update that is `length` in the direction of `angle`, in the plane of two entries of a 2 x 2 matrix."""
    row = torch.tensor([[math.cos(angle), math.sin(angle)]], dtype=torch.float64)
    return {"m": [Factor(row, torch.tensor([[1.0], [0.0]], dtype=torch.float64), length)]}


@given(st.floats(0, 1))
def test_slerp_between_orthogonal_updates_of_one_norm_keeps_the_norm(weight: float) -> None:
    soup = slerp([along(0, 3), along(math.pi / 2, 3)], [1 - weight, weight])
    assert inner(soup["m"], soup["m"]) == pytest.approx(9)


def test_slerp_goes_along_the_arc_at_an_even_pace() -> None:
    # A third of the way over a right angle: sin 60 and sin 30 degrees. Half-way over 60: sin 30 / sin 60 twice.
    third = matrix(slerp([along(0), along(math.pi / 2)], [2 / 3, 1 / 3])["m"])
    near(third[0], torch.tensor([math.sqrt(3) / 2, 0.5], dtype=torch.float64))
    half = matrix(slerp([along(0), along(math.pi / 3)], [0.5, 0.5])["m"])
    near(half, (matrix(along(0)["m"]) + matrix(along(math.pi / 3)["m"])) / math.sqrt(3))


def test_slerp_measures_each_module_by_itself() -> None:
    one, two = along(0)["m"], along(math.pi / 2)["m"]
    soup = slerp([{"turned": one, "same": one}, {"turned": two, "same": one}], [0.5, 0.5])
    assert inner(soup["turned"], soup["turned"]) == pytest.approx(1)
    near(matrix(soup["same"]), matrix(one))


@pytest.mark.parametrize("angle", [0, 1e-9, math.pi])
def test_slerp_of_parallel_updates_is_linear(angle: float) -> None:
    experts = [along(0, 1), along(angle, 3)]
    near(matrix(slerp(experts, [0.25, 0.75])["m"]), matrix(delta(experts, [0.25, 0.75])["m"]))


def test_slerp_is_linear_where_an_update_is_zero_or_absent() -> None:
    fresh = {"m": [Factor(torch.ones(1, 2).double(), torch.zeros(2, 1).double(), 1.0)]}
    for other in (fresh, {}):
        near(matrix(slerp([along(1), other], [0.25, 0.75])["m"]), 0.25 * matrix(along(1)["m"]))


def test_the_way_back_along_the_arc_is_the_same() -> None:
    one, two = expert(1, rank=2, chain=2), expert(2, rank=3)
    for name in "ab":
        near(matrix(slerp([one, two], [0.3, 0.7])[name]), matrix(slerp([two, one], [0.7, 0.3])[name]))


def test_inner_products_are_those_of_the_whole_matrices() -> None:
    one, two = expert(1, chain=2)["a"], expert(2, rank=3)["a"]
    assert inner(one, two) == pytest.approx(float((matrix(one) * matrix(two)).sum()))


# Full weights


def test_full_weights_are_averaged_tensor_by_tensor_in_their_own_dtypes() -> None:
    states = [
        {"w": torch.tensor([2.0, 4.0]), "half": torch.tensor([1.0], dtype=torch.bfloat16), "ids": torch.arange(3)},
        {"w": torch.tensor([6.0, 0.0]), "half": torch.tensor([3.0], dtype=torch.bfloat16), "ids": torch.arange(3)},
    ]
    found = average(states, [0.25, 0.75])
    assert found["w"].tolist() == [5.0, 1.0] and found["ids"].tolist() == [0, 1, 2]
    assert found["half"].tolist() == [2.5] and found["half"].dtype == torch.bfloat16


def test_low_precision_weights_are_averaged_in_fp32() -> None:
    # In bf16, 256 + 1 is 256 again: ten tenths would never leave 256.
    states = [{"w": torch.tensor([256.0 + 2 * n], dtype=torch.bfloat16)} for n in range(10)]
    assert average(states, [0.1] * 10)["w"].item() == torch.tensor(265.0).bfloat16().item() != 256


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_corners_and_equal_models_are_theirs_to_the_bit_in_new_tensors(dtype: torch.dtype) -> None:
    torch.manual_seed(0)
    one, two = ({"w": torch.randn(50).to(dtype)} for _ in range(2))
    assert torch.equal(average([one, two], [0.0, 1.0])["w"], two["w"])
    assert torch.equal(average([one, one, one], [0.3, 0.3, 0.4])["w"], one["w"])
    average([one], [1.0])["w"].zero_()
    assert one["w"].any()


def test_the_order_of_the_models_does_not_matter() -> None:
    torch.manual_seed(0)
    states = [{"w": torch.randn(50)} for _ in range(3)]
    torch.testing.assert_close(average(states, [0.2, 0.5, 0.3]), average(states[::-1], [0.3, 0.5, 0.2]))


# Refusals, in words

REFUSED: list[tuple[list[Any], list[float], str]] = [
    ([expert(1), expert(2, rank=3)], [0.5, 0.5], r"the experts' ranks differ at a: 2, 3; .*\(delta\)"),
    ([expert(1), expert(2, scaling=2.0)], [0.5, 0.5], "the experts' scalings differ at a: 1.5, 2.0"),
    ([expert(1), expert(2, modules="a")], [0.5, 0.5], "expert 2 does not touch b, another one does"),
    ([expert(1), expert(2, chain=2)], [1.0, 0.0], "expert 2 is a chain of 2 adapters"),
]


@pytest.mark.parametrize(("experts", "weights", "message"), REFUSED)
def test_factors_that_have_no_average_are_refused(experts, weights, message) -> None:
    with pytest.raises(ValueError, match=message):
        factors(experts, weights)


@pytest.mark.parametrize(
    ("weights", "message"),
    [
        ([1.5, -0.5], "1.5, -0.5 are not all 0 or more: extrapolation is not offered"),
        ([0.5, 0.6], "sum to 1.1; they must sum to 1"),
        ([0.5, 0.5 + 2e-9], "must sum to 1"),
        ([math.nan, 1.0], "are not all finite"),
        ([math.inf, -math.inf], "are not all finite"),
        ([], "sum to 0; they must sum to 1"),
    ],
)
def test_weights_that_do_not_average_are_refused(weights: list[float], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        check_weights(weights)
    for rule in (delta, factors):
        with pytest.raises(ValueError, match=message):
            rule([expert(seed) for seed in range(len(weights))], weights)
    with pytest.raises(ValueError, match=message):
        average([{}] * len(weights), weights)


def test_weights_and_experts_must_be_equally_many() -> None:
    with pytest.raises(ValueError, match="2 experts came with 1 weights"):
        delta([expert(1), expert(2)], [1.0])
    with pytest.raises(ValueError, match="slerp goes between two experts; 3 were given"):
        slerp([expert(1), expert(2), expert(3)], [0.2, 0.3, 0.5])


def test_experts_of_models_of_other_shapes_are_refused() -> None:
    other = {"a": [Factor(torch.zeros(2, IN + 1), torch.zeros(OUT, 2), 1.0)]}
    with pytest.raises(ValueError, match=r"updates of a have shapes \(5, 7\), \(5, 8\): not one model's"):
        delta([expert(1), other], [0.5, 0.5])


@pytest.mark.parametrize(
    ("other", "message"),
    [
        ({"w": torch.zeros(2)}, "models 1 and 2 do not hold the same tensors: ids is in one of them only"),
        ({"w": torch.zeros(3), "ids": torch.arange(2)}, r"w is float32 \[2\] in model 1 and float32 \[3\] in model 2"),
        ({"w": torch.zeros(2).bfloat16(), "ids": torch.arange(2)}, r"w is float32 \[2\] .* bfloat16 \[2\] in model 2"),
        ({"w": torch.zeros(2), "ids": torch.ones(2).long()}, "ids holds integers that differ between models 1 and 2"),
    ],
)
def test_models_that_have_no_average_are_refused(other: dict[str, Tensor], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        average([{"w": torch.zeros(2), "ids": torch.arange(2)}, other], [1.0, 0.0])
