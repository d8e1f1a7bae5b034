"""The KL divergence KL(policy || reference) of a decoding rule, estimated from answers that it drew itself.

The policy is what is drawn from: after guidance, temperature, top-k and top-p. The reference is a language model as it is, at
temperature 1 with its whole vocabulary. With y_t the tokens of an answer y ~ policy and rho_t = reference(y_t) / policy(y_t), each
given what stands before, the divergence of the whole answer is the mean of each of

    Rao-Blackwell   sum_t KL(policy(. | y_<t) || reference(. | y_<t))     every token's divergence, exactly
    k1              sum_t -log rho_t                                     unbiased; may be negative
    k3              sum_t rho_t - 1 - log rho_t                          no term is negative; unbiased where the rule leaves nothing out

The three have one mean (which has the smallest variance depends on the two models: `rao_blackwell` mostly, not always). k3 loses
the reference's mass on tokens that a rule leaves out, so it is not given there.
"""

from __future__ import annotations

import torch
from torch import Tensor

from registry.methods.best_of_n import kl_bound


def token_kl(weights: Tensor, reference: Tensor) -> Tensor:
    """KL(policy || reference) of one token, [...], in nats.

    Args:
        weights: what is drawn from [..., candidates], not below 0, of any sum.
        reference: log-probabilities [..., candidates] of the same tokens.
    """
    share = weights.double()
    whole = share.sum(-1)
    apart = share.log().sub_(reference)
    apart.masked_fill_(share == 0, 0.0)
    return apart.mul_(share).sum(-1) / whole - whole.log()


def k1(log_probs: Tensor, reference: Tensor) -> Tensor:
    """-log rho, of log-probabilities of drawn tokens under the policy and under the reference, of one shape."""
    return log_probs - reference


def k3(log_probs: Tensor, reference: Tensor) -> Tensor:
    """rho - 1 - log rho, not below 0 (Schulman, "Approximating KL divergence", 2020)."""
    return torch.expm1(reference - log_probs) + log_probs - reference


def sampled_token(weights: Tensor, token: Tensor) -> Tensor:
    """The log-probability [...] of `token` [...] where it is drawn from `weights` [..., candidates]."""
    chosen = weights.gather(-1, token[..., None])[..., 0].double()
    return chosen.log() - weights.double().sum(-1).log()


def blockwise_bound(lengths: Tensor, branches: int, block: int) -> Tensor:
    """At most the divergence of block-wise best-of-K from the policy that draws the blocks: log K - (K - 1) / K for each of
    the ceil(L / M) blocks of an answer of L tokens (arXiv 2310.17022)."""
    return torch.ceil(lengths / block) * kl_bound(branches)
