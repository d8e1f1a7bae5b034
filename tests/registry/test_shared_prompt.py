"""Rows of one prompt and several answers: what stands where, what sees what, and values brought back to answers."""

from __future__ import annotations

import pytest
import torch

from registry.methods.shared_prompt import IGNORED, by_answer, by_token, lengths, pack

NONE = IGNORED
LONG = ([7, 8, 9], [[1, 2], [3]])
SHORT = ([5], [[6]])  # one token each


def test_a_row_by_hand() -> None:
    packed = pack([LONG])
    assert packed.input_ids.tolist() == [[7, 8, 9, 1, 9]]
    assert packed.position_ids.tolist() == [[0, 1, 2, 3, 2]]
    assert packed.labels.tolist() == [[NONE, NONE, 1, 2, 3]]
    assert packed.owners.tolist() == [[2, 2, 0, 0, 1]]
    assert packed.visible.int().tolist() == [
        [
            [
                [1, 0, 0, 0, 0],  # 7
                [1, 1, 0, 0, 0],  # 8
                [1, 1, 1, 0, 0],  # 9, before the first answer
                [1, 1, 1, 1, 0],  # 1
                [1, 1, 0, 0, 1],  # 9, before the second answer, which sees nothing of the first
            ]
        ]
    ]


def test_a_whole_row_reads_the_last_tokens_too_and_predicts_nothing_there() -> None:
    packed = pack([LONG], whole=True)
    assert packed.input_ids.tolist() == [[7, 8, 9, 1, 2, 9, 3]]
    assert packed.position_ids.tolist() == [[0, 1, 2, 3, 4, 2, 3]]
    assert packed.labels.tolist() == [[NONE, NONE, 1, 2, NONE, 3, NONE]]
    assert packed.owners.tolist() == [[2, 2, 0, 0, 0, 1, 1]]
    assert packed.visible[0, 0, 6].int().tolist() == [1, 1, 0, 0, 0, 1, 1]


@pytest.mark.parametrize("whole", [False, True])
def test_padding_sees_itself_alone_and_is_seen_by_nothing(whole: bool) -> None:
    packed = pack([LONG, SHORT], whole=whole)
    real = 1 + whole
    width = 5 + 2 * whole
    assert packed.input_ids[1].tolist() == [5, *([6] if whole else []), *[0] * (width - real)]
    assert packed.labels[1].tolist() == [6, *[NONE] * (width - 1)]
    assert packed.owners[1].tolist() == [*[0] * real, *[2] * (width - real)]
    padding = packed.visible[1, 0, real:]
    assert torch.equal(padding, torch.eye(width, dtype=torch.bool)[real:])
    assert not packed.visible[1, 0, :real, real:].any()


@pytest.mark.parametrize(
    ("prompt", "answers", "whole", "positions"),
    [(4, (3, 1, 5), False, 3 + 9), (4, (3, 1, 5), True, 3 + 9 + 3), (1, (1,), False, 1), (1, (2, 2), True, 6)],
)
def test_a_row_costs_the_prompt_once_less_a_token_and_each_answer(
    prompt: int, answers: tuple[int, ...], whole: bool, positions: int
) -> None:
    packed = pack([([4] * prompt, [[5] * size for size in answers])], whole=whole)
    assert packed.input_ids.shape == (1, positions)
    assert packed.visible.shape == (1, 1, positions, positions)
    # An answer stands where it would stand behind the prompt alone, whatever is beside it.
    assert int(packed.position_ids.max()) == prompt - 1 + max(answers) - 1 + whole


def test_values_are_summed_over_the_positions_of_each_answer() -> None:
    packed = pack([LONG, SHORT])
    values = torch.tensor([[100.0, 100, 1, 2, 4], [8, 100, 100, 100, 100]], requires_grad=True)
    sums = by_answer(values, packed.owners, 2)
    assert sums.tolist() == [[3, 4], [8, 0]]
    (sums * torch.tensor([[1.0, 2], [3, 4]])).sum().backward()
    assert values.grad is not None and values.grad.tolist() == [[0, 0, 1, 1, 2], [3, 0, 0, 0, 0]]


@pytest.mark.parametrize(
    ("whole", "values"),
    [
        (False, [[100.0, 100, 1, 2, 4], [8, 100, 100, 100, 100]]),
        (True, [[100.0, 100, 1, 2, 100, 4, 100], [8, 100, 100, 100, 100, 100, 100]]),
    ],
)
def test_values_are_laid_out_by_the_tokens_that_are_predicted(whole: bool, values: list[list[float]]) -> None:
    packed = pack([LONG, SHORT], whole=whole)
    given = torch.tensor(values, requires_grad=True)
    found = by_token(given, packed, 2)
    assert found.tolist() == [[[1, 2], [4, 0]], [[8, 0], [0, 0]]]
    found.sum().backward()
    assert given.grad is not None and given.grad.tolist() == [[float(v != 100) for v in row] for row in values]


def test_every_token_comes_back_at_its_place_in_its_answer() -> None:
    rows = [([3] * p, [[10 * a + t for t in range(size)] for a, size in enumerate(sizes, 1)]) for p, sizes in SIZES]
    packed = pack(rows)
    found = by_token(packed.labels.float(), packed, 3)
    assert found.shape == (3, 3, 6)
    for r, (_, answers) in enumerate(rows):
        for a in range(3):
            expected = [float(token) for token in answers[a]] if a < len(answers) else []
            assert found[r, a].tolist() == expected + [0] * (6 - len(expected))


SIZES = [(1, (2, 6, 1)), (9, (3,)), (4, (1, 1))]


def test_the_tokens_of_each_answer_are_counted_and_0_where_there_is_none() -> None:
    assert lengths([LONG, SHORT]).tolist() == [[2, 1], [1, 0]]
