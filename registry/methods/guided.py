"""What a guided decoder draws its next token from.

    s(z) = w_0 log pi(z) + sum_i w_i score_i(z)

ARGS (arXiv 2402.01694): score the reward of the prefix with z, over the k most probable z. Controlled decoding (arXiv
2310.17022, theorem 2.1): the value of the prefix with z. GenARM (arXiv 2410.08193): log pi_r(z). MOD (arXiv 2406.18853):
log-probabilities of other policies.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor


def combined(
    own: Tensor, scored: Sequence[tuple[Tensor, float]], weight: float = 1.0, *, normalised: bool = False
) -> Tensor:
    """s [rows, candidates] in fp32 or finer, up to a constant of each row where `own` or scores are logits.

    Args:
        own: the policy's log-probabilities or logits [rows, candidates].
        scored: each guide's scores and weight. A model with spare embeddings may score more tokens than another;
            what not all of them score is left out.
        normalised: divide by the sum of the weights, as GenARM's published code does (which undoes it by a temperature
            of one over that sum).
    """
    size = min([own.shape[1], *(scores.shape[1] for scores, _ in scored)])
    whole = own[:, :size].to(torch.promote_types(own.dtype, torch.float32))
    # 0 times an infinite score is no number.
    whole = whole * weight if weight else torch.zeros_like(whole)
    for scores, one in scored:
        if one != 0:
            whole = whole + one * scores[:, :size]
    if normalised:
        whole = whole / (weight + sum(one for _, one in scored))
    return whole


def most_probable(logits: Tensor, k: int) -> Tensor:
    """The k most probable tokens of each row [rows, k], in order of their ids; of equal ones the lowest ids are taken."""
    if k >= logits.shape[1]:
        return torch.arange(logits.shape[1], device=logits.device).expand(len(logits), -1)
    values, tokens = logits.topk(k + 1, dim=-1)
    tokens = tokens[:, :k]
    border = values[:, k - 1 : k]
    if bool((border == values[:, k:]).any()):  # `topk` takes which of equal ones it likes
        above = logits > border
        equal = logits == border
        taken = above | (equal & (equal.cumsum(-1) <= k - above.sum(-1, keepdim=True)))
        found = taken.sum(-1) == k  # not where a row holds a NaN
        tokens[found] = taken[found].nonzero()[:, 1].view(-1, k)
    return tokens.sort(dim=-1).values


def standardised(scores: Tensor) -> Tensor:
    """Scores of each row at mean 0 and standard deviation 1; equal ones at 0."""
    centred = scores - scores.mean(-1, keepdim=True)
    spread = centred.square().mean(-1, keepdim=True).sqrt()
    rounding = 4 * torch.finfo(scores.dtype).eps * scores.abs().amax(-1, keepdim=True)
    return torch.where(spread > rounding, centred / spread, 0.0)
