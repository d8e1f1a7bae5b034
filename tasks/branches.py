"""Several continuations of every row at once, side by side behind what the row holds.

Nothing of the row is copied: each branch sees the row and itself, so k branches of D tokens cost k D positions however long
the row is. One of them can then be made the row's own.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from tasks.reader import Reader

PAD = -1


@dataclass(frozen=True)
class Branches:
    """k continuations of up to D tokens of every row."""

    tokens: Tensor
    """[rows, k, D], `PAD` behind an end."""
    ends: Tensor
    """[rows, k], bool: whether the branch came to its end."""
    places: Tensor
    """[rows, k, D - 1]: where behind its row the reader holds all but the last token."""

    @property
    def lengths(self) -> Tensor:
        """[rows, k]"""
        return (self.tokens != PAD).sum(-1)

    def of(self, chosen: Tensor) -> Tensor:
        """The tokens [rows, D] of the branch `chosen` [rows] of each row."""
        return _of(self.tokens, chosen)

    def keep(self, reader: Reader, chosen: Tensor, many: int) -> None:
        """Make the first `many` tokens of the branch `chosen` [rows] the row's own; its last one the reader has not read."""
        reader.keep(_of(self.places, chosen)[:, :many])


Draw = Callable[[Tensor, Tensor, int], Tensor]
"""`draw(logits, branches, t)` gives token `t` of the branches [rows, n] from their logits [rows, n, vocabulary]."""


def grow(reader: Reader, first: Tensor, limits: Tensor, draw: Draw, eos: Tensor) -> Branches:
    """Branches that begin with the tokens `first` [rows, k] and have at most `limits` [rows] tokens; what has come to its
    end is fed no further."""
    depth = int(limits.max())
    rows, k = first.shape
    tokens = first.new_full((rows, k, depth), PAD)
    tokens[:, :, 0] = first
    places = first.new_zeros(rows, k, depth - 1)
    owners = first.new_zeros(rows, 0)
    alive = ~torch.isin(first, eos) & (limits > 1)[:, None]
    for t in range(1, depth):
        width = int(alive.sum(1).max())
        if width == 0:
            break
        # The live branches of each row first; a row with fewer than another feeds some that have ended, which nobody sees.
        branches = (~alive).int().argsort(dim=1, stable=True)[:, :width]
        live = alive.gather(1, branches)
        before = owners.shape[1]
        owners = torch.cat([owners, torch.where(live, branches, k + branches)], dim=1)
        seen = owners[:, None] == owners[:, before:, None]
        fed = tokens[:, :, t - 1].gather(1, branches).clamp(min=0)
        ahead = live * (
            t - 1
        )  # what has ended stands where the row ends: further on a table of positions may have none
        logits = reader.look(fed, seen, ahead, padding=rows * width - int(alive.sum()))
        here = torch.arange(before, before + width, device=first.device).expand(rows, -1)
        places[:, :, t - 1] = places[:, :, t - 1].scatter(1, branches, here)
        drawn = torch.where(live, draw(logits, branches, t), PAD)
        tokens[:, :, t] = tokens[:, :, t].scatter(1, branches, drawn)
        alive &= ~torch.isin(tokens[:, :, t], eos) & (limits > t + 1)[:, None]
    return Branches(tokens, torch.isin(tokens, eos).any(-1), places)


def read(reader: Reader, tokens: Tensor) -> Tensor:
    """What the reader gives at the last token of each branch [rows, k, ...], all branches read in one pass.

    `tokens` is [rows, k, D], `PAD` behind an end. Token t of branch j then lies at place j D + t behind its row.
    """
    rows, k, depth = tokens.shape
    device = tokens.device
    branch = torch.arange(k, device=device).repeat_interleave(depth)
    step = torch.arange(depth, device=device).repeat(k)
    seen = (branch[:, None] == branch) & (step <= step[:, None])
    is_real = (tokens != PAD).flatten(1)
    padding = int((~is_real).sum())
    found = reader.look(tokens.flatten(1).clamp(min=0), seen[None], step * is_real, padding=padding)
    lasts = torch.arange(k, device=device) * depth + (tokens != PAD).sum(-1) - 1
    return found[torch.arange(rows, device=device)[:, None], lasts]


def _of(values: Tensor, chosen: Tensor) -> Tensor:
    return values[torch.arange(len(chosen), device=chosen.device), chosen]
