"""What is read in one pass: every row once, like lengths together, no more than was asked for or than is read fast."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest
import tiny
import torch
from transformers import LlamaForCausalLM

from registry import batches as module
from registry.batches import batches
from registry.log_probs import score_rows
from registry.methods import footprint


@pytest.fixture
def model(tmp_path) -> LlamaForCausalLM:
    """Its feed-forward part is 64 wide."""
    tiny.language_model(tmp_path, intermediate_size=64)
    return LlamaForCausalLM.from_pretrained(tmp_path).eval()


def test_rows_are_read_widest_first_and_as_many_together_as_was_asked_for(model) -> None:
    assert list(batches([3, 9, 5, 9, 1], [1] * 5, 2, model)) == [[1, 3], [2, 0], [4]]


def test_answers_count_and_rows_stay_whole(model) -> None:
    assert list(batches([9, 8, 7, 6], [2, 1, 5, 1], 3, model)) == [[0, 1], [2], [3]]


def test_a_pass_on_a_processor_holds_no_more_positions_than_it_reads_fast(
    model, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Of twenty positions, padding included: two rows of nine, then three of which the widest has six, then one too wide for
    any pass alone."""
    monkeypatch.setattr(footprint, "IN_HAND", 4 * 64 * 20)
    assert module.at_once(64) == 20
    assert list(batches([9, 6, 9, 5, 1, 99], [1] * 6, 64, model)) == [[5], [0, 2], [1, 3, 4]]


@pytest.mark.parametrize(
    ("widths", "inner"),
    [({"intermediate_size": 48}, 48), ({"intermediate_size": [48, 96]}, 96), ({"n_inner": None, "hidden_size": 8}, 32)],
)
def test_layers_are_as_wide_as_the_widest_feed_forward_part(widths: dict[str, Any], inner: int) -> None:
    assert module._inner(SimpleNamespace(**widths)) == inner


def test_a_gpu_reads_all_that_was_asked_for_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(footprint, "IN_HAND", 1)
    gpu = SimpleNamespace(device=torch.device("cuda"))
    assert list(batches([9, 9, 9], [1] * 3, 3, gpu)) == [[0, 1, 2]]


def test_passes_change_no_log_probability(model, monkeypatch: pytest.MonkeyPatch) -> None:
    rows = [([1, 2, 3], [[4, 5], [6]]), ([2] * 9, [[7] * 5]), ([3], [[1]])]
    whole = score_rows(model, rows, batch=8)
    monkeypatch.setattr(footprint, "IN_HAND", 1)
    for row, alone in zip(whole, score_rows(model, rows, batch=8), strict=True):
        torch.testing.assert_close(torch.tensor(alone), torch.tensor(row), rtol=1e-5, atol=1e-5)
