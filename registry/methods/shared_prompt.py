"""The answers to one prompt in one row: the prompt is read once, and each answer sees the prompt and itself.

A row is the prompt without its last token, then for each answer that last token again and the answer without its own
last. So every position after the prompt predicts exactly one token, and k answers cost P - 1 + T_1 + ... + T_k
positions where k padded sequences cost k (P + max T).
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor

IGNORED = -100


class Packed(NamedTuple):
    """Rows as tensors; L is the longest row."""

    input_ids: Tensor
    """[rows, L]"""
    position_ids: Tensor
    """[rows, L]: where the token stands in the sequence of its own answer."""
    visible: Tensor
    """[rows, 1, L, L], bool: which positions (last axis) each position sees."""
    labels: Tensor
    """[rows, L]: the token that a position predicts, or `IGNORED`."""
    owners: Tensor
    """[rows, L]: which answer a position belongs to; the number of answers where it is prompt or padding."""


def pack(rows: Sequence[tuple[Sequence[int], Sequence[Sequence[int]]]], *, whole: bool = False) -> Packed:
    """`(prompt, answers)` of each row as tensors. Prompts and answers hold at least one token each; rows may have
    different numbers of answers. Padding repeats token 0, sees itself alone and is seen by nothing. With `whole` the last
    token of each answer is read too, at a position that predicts nothing."""
    most = max(len(answers) for _, answers in rows)
    width = max(len(prompt) - 1 + sum(len(a) + whole for a in answers) for prompt, answers in rows)
    ids = torch.zeros(len(rows), width, dtype=torch.long)
    positions = torch.zeros_like(ids)
    labels = torch.full_like(ids, IGNORED)
    owners = torch.full_like(ids, most)
    real = torch.zeros_like(ids, dtype=torch.bool)
    for r, (prompt, answers) in enumerate(rows):
        shared = len(prompt) - 1
        ids[r, :shared] = torch.tensor(prompt[:-1], dtype=torch.long)
        positions[r, :shared] = torch.arange(shared)
        at = shared
        for a, answer in enumerate(answers):
            here = slice(at, at + len(answer) + whole)
            ids[r, here] = torch.tensor([prompt[-1], *answer] if whole else [prompt[-1], *answer[:-1]])
            positions[r, here] = torch.arange(shared, shared + len(answer) + whole)
            labels[r, at : at + len(answer)] = torch.tensor(answer)
            owners[r, here] = a
            at += len(answer) + whole
        real[r, :at] = True
    prefix = real & (owners == most)
    order = torch.arange(width)
    earlier = order[None, :] <= order[:, None]
    kin = (owners[:, :, None] == owners[:, None, :]) | prefix[:, None, :]
    visible = earlier & kin & real[:, None, :] & real[:, :, None]
    visible |= torch.eye(width, dtype=torch.bool)
    return Packed(ids, positions, visible[:, None], labels, owners)


def by_answer(values: Tensor, owners: Tensor, answers: int) -> Tensor:
    """Sums [rows, answers] of values at positions [rows, L] over the positions of each answer."""
    sums = values.new_zeros(len(values), answers + 1)
    return sums.scatter_add(1, owners, values)[:, :answers]


def by_token(values: Tensor, packed: Packed, answers: int) -> Tensor:
    """Values at positions [rows, L] as [rows, answers, T], T the tokens of the longest answer: of the position that predicts
    each token; 0 beyond an answer's end."""
    predicts = packed.labels != IGNORED
    first = packed.position_ids.gather(1, predicts.int().argmax(1, keepdim=True))
    token = (packed.position_ids - first).clamp(min=0)
    longest = int((token * predicts).max()) + 1
    place = torch.where(predicts, packed.owners * longest + token, answers * longest)
    found = values.new_zeros(len(values), answers * longest + 1)
    return found.scatter(1, place, values)[:, :-1].view(len(values), answers, longest)


def lengths(rows: Sequence[tuple[Sequence[int], Sequence[Sequence[int]]]]) -> Tensor:
    """Tokens of each answer [rows, answers], 0 where a row has fewer."""
    most = max(len(answers) for _, answers in rows)
    return torch.tensor([[len(a) for a in answers] + [0] * (most - len(answers)) for _, answers in rows])
