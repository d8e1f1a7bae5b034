"""The scores that a guided decoder draws from: candidates, weights, and what changes nothing."""

from __future__ import annotations

import pytest
import torch

from registry.methods.guided import combined, most_probable, standardised

OWN = torch.tensor([[1.0, 0.5, -2.0, 0.25]], dtype=torch.float64)
REWARD = torch.tensor([[0.0, 2.0, 5.0, -1.0]], dtype=torch.float64)


def test_scores_are_the_weighted_sum() -> None:
    found = combined(OWN, [(REWARD, 0.5), (OWN, 2.0)])
    torch.testing.assert_close(found, torch.tensor([[3.0, 2.5, -3.5, 0.25]], dtype=torch.float64))
    found = combined(OWN, [(REWARD, 0.5)], 1.5, normalised=True)
    torch.testing.assert_close(found, (1.5 * OWN + 0.5 * REWARD) / 2)


def test_neither_a_constant_nor_a_change_of_units_changes_the_distribution() -> None:
    whole = combined(OWN, [(REWARD, 1.5)]).softmax(-1)
    torch.testing.assert_close(combined(OWN + 7, [(REWARD - 3, 1.5)]).softmax(-1), whole)
    torch.testing.assert_close(combined(OWN, [(4 * REWARD, 1.5 / 4)]).softmax(-1), whole)


def test_a_guide_without_weight_may_score_minus_infinity() -> None:
    impossible = torch.full_like(OWN, -torch.inf)
    torch.testing.assert_close(combined(OWN, [(impossible, 0.0)]), OWN)
    torch.testing.assert_close(combined(impossible, [(OWN, 1.0)], 0.0), OWN)


def test_tokens_that_not_every_model_has_are_left_out() -> None:
    assert combined(OWN, [(REWARD[:, :3], 1.0)]).shape == (1, 3)
    assert combined(OWN[:, :2], [(REWARD, 1.0)]).shape == (1, 2)


def test_candidates_are_the_most_probable_in_order_of_their_ids() -> None:
    logits = torch.tensor([[0.0, 5.0, 1.0, 3.0], [4.0, 1.0, 2.0, 3.0]])
    assert most_probable(logits, 2).tolist() == [[1, 3], [0, 3]]
    assert most_probable(logits, 9).tolist() == [[0, 1, 2, 3]] * 2


def test_of_equal_tokens_at_the_border_the_lowest_ids_are_candidates() -> None:
    logits = torch.tensor([[1.0, 3.0, 1.0, 1.0, 9.0], [5.0, 4.0, 3.0, 2.0, 1.0]], dtype=torch.bfloat16)
    assert most_probable(logits, 3).tolist() == [[0, 1, 4], [0, 1, 2]]
    assert most_probable(torch.zeros(2, 300), 3).tolist() == [[0, 1, 2]] * 2


def test_a_row_without_numbers_does_not_hinder_the_others() -> None:
    logits = torch.tensor([[torch.nan, 0.0, 0.0, 0.0], [0.0, 0.0, 0.0, 0.0]])
    assert most_probable(logits, 2)[1].tolist() == [0, 1]


@pytest.mark.parametrize("scale", [1.0, 1e-3, 40.0])
def test_standardised_scores_have_no_unit(scale: float) -> None:
    found = standardised(scale * REWARD + 3)
    torch.testing.assert_close(found.mean(-1), torch.zeros(1, dtype=torch.float64), atol=1e-12, rtol=0)
    torch.testing.assert_close(found.square().mean(-1), torch.ones(1, dtype=torch.float64))
    torch.testing.assert_close(found, standardised(REWARD))


def test_equal_scores_are_standardised_to_nought() -> None:
    assert standardised(torch.full((2, 3), 4.0)).tolist() == [[0.0] * 3] * 2
