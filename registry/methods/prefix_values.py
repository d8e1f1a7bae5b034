"""The losses that teach a scorer the value of a prefix: CD-FUDGE, CD-Q, and PARGS' comparisons of prefixes.

Sources: Controlled Decoding (Mudgal et al., arXiv 2310.17022), losses l_F and l_Q; PARGS (Rashid et al., arXiv
2406.07780). A value at token t is that of the prefix which ends with token t. `mask` is bool, true for a response's
tokens. Losses are per sequence or per pair.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor


def fudge_loss(values: Tensor, reward: Tensor, mask: Tensor) -> Tensor:
    """l_F: 1/2 the sum over t of (V_t - r)^2, every prefix regressed on the reward of the whole.

    Its minimiser is the value under the policy that wrote the responses: for V* they must come from the reference.

    Args:
        values, mask: [sequences, tokens].
        reward: [sequences].
    Returns:
        [sequences].
    """
    return q_loss(values, reward[:, None], mask)


def expected_value(next_values: Tensor, next_log_probs: Tensor) -> Tensor:
    """The sum over z of pi_ref(z) V([x, y^t, z]): what the reference expects after a prefix.

    The probabilities must be the reference's whole distribution, or a part of it that was normalised again.

    Args:
        next_values, next_log_probs: of each next token [..., vocabulary].
    Returns:
        [...].
    """
    return (next_log_probs.exp() * next_values).sum(-1)


def q_targets(expected: Tensor, reward: Tensor, ends: Tensor) -> Tensor:
    """v_t of l_Q: the reward where token t is the last of its response, else what the reference expects after it.

    No gradient passes. The responses may come from any policy. A response that was cut off has no reward unless the
    caller says what it is worth.

    Args:
        expected: `expected_value` after token t [sequences, tokens].
        reward: [sequences].
        ends: bool [sequences, tokens].
    Returns:
        [sequences, tokens].
    """
    return torch.where(ends, reward[:, None], expected).detach()


def q_loss(values: Tensor, targets: Tensor, mask: Tensor) -> Tensor:
    """l_Q: 1/2 the sum over t of (V_t - v_t)^2; all [sequences, tokens], giving [sequences]."""
    return torch.where(mask, (values - targets) ** 2, 0.0).sum(1) / 2


def equal_length_prefixes(chosen_lengths: Tensor, rejected_lengths: Tensor, tokens: int) -> Tensor:
    """The mask [pairs, tokens] of the lengths that both answers of a pair have, from their lengths in tokens [pairs].

    The authors' data goes on to the longer answer, the shorter one standing still at its end.
    """
    shorter = torch.minimum(chosen_lengths, rejected_lengths)
    return torch.arange(tokens, device=shorter.device) < shorter[:, None]


def prefix_preference_loss(chosen_values: Tensor, rejected_values: Tensor, mask: Tensor) -> Tensor:
    """The Bradley-Terry loss of each prefix of the chosen answer against the rejected one's of equal length.

    It is the mean over a pair's prefixes: the prefixes of one pair share one judgement, and a sum would count that
    judgement once for every token of the answer. A pair without a prefix gives 0.

    Args:
        chosen_values, rejected_values, mask: [pairs, tokens].
    Returns:
        [pairs].
    """
    losses = torch.where(mask, -F.logsigmoid(chosen_values - rejected_values), 0.0)
    return losses.sum(1) / mask.sum(1).clamp(min=1)
