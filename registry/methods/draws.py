"""Random draws that belong to a sample, never to the batch in which it happens to be computed.

Each (seed, key, sample) owns a stream of uniform numbers, one a step, out of a counter-based
generator. A number becomes a token by the inverse of the cumulative distribution in vocabulary
order, so that two nearby distributions under the same number mostly give the same token: policies
compared under one seed are compared in pairs, and restarts and shards reproduce.
"""

from __future__ import annotations

import hashlib
import math

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

# Tokens a block of the two-level cumulative sum: one pass of plain sums over the vocabulary, then
# an exact cumulative sum over the blocks and one inside the chosen block.
BLOCK = 256
# A nucleus is looked for among this many tokens before the whole vocabulary is sorted.
NUCLEUS = 512
# Logits a CPU turns into weights at a time: larger temporaries leave the allocator's pool, and
# mapping them afresh at every step costs several times the arithmetic.
CHUNK = 1 << 19


def uniforms(seed: int, key: str, sample: int, count: int, branch: int = 0) -> np.ndarray:
    """The first `count` numbers in [0, 1) of the stream of one sample, or of one of the `branch`es that it is chosen from, the
    first of which is the sample itself; a longer call extends it."""
    number = f"{sample}.{branch}" if branch else f"{sample}"
    digest = hashlib.sha256(f"{seed}\n{number}\n{key}".encode()).digest()
    words = np.frombuffer(digest[:16], dtype="<u8").astype(np.uint64)
    return np.random.Generator(np.random.Philox(key=words)).random(count)


def inverse_cdf(logits: Tensor, u: Tensor, *, temperature: float = 1.0, top_k: int = 0, top_p: float = 1.0) -> Tensor:
    """The token of each row of `logits` [rows, vocabulary] at its number in `u` [rows].

    Temperature 0 is greedy (lowest index among equals). `top_k` (0: off) keeps the k most probable
    tokens, then `top_p` (1: off) the smallest set of most probable ones whose mass reaches it;
    equal tokens are kept in order of index. A token of probability 0 is never returned. A row that
    is no distribution (a NaN, an infinity, nothing finite) gives -1.
    """
    check_rule(temperature, top_k, top_p)
    chunk = max(1, CHUNK // logits.shape[1])
    if logits.device.type == "cpu" and len(logits) > chunk:
        tokens = [
            inverse_cdf(part, number, temperature=temperature, top_k=top_k, top_p=top_p)
            for part, number in zip(logits.split(chunk), u.split(chunk), strict=True)
        ]
        return torch.cat(tokens)
    if temperature == 0:
        best = logits.argmax(dim=-1)
        value = logits.gather(1, best[:, None])[:, 0]
        return torch.where(value.isfinite(), best, -1)
    return _invert(decoding_weights(logits, temperature, top_k, top_p), u)


def decoding_weights(logits: Tensor, temperature: float, top_k: int, top_p: float) -> Tensor:
    """What `inverse_cdf` draws from at a temperature above 0: weights [rows, vocabulary] in fp32, 0 for what the rule leaves
    out. They sum to 1 where it leaves nothing out."""
    # From the highest one down, so that a low temperature takes none of them beyond the largest number.
    scaled = logits if temperature == 1 else (logits.float() - logits.float().amax(-1, keepdim=True)) / temperature
    weights = torch.softmax(scaled, dim=-1, dtype=torch.float32)
    return _most_probable(weights, top_k, top_p) if top_k > 0 or top_p < 1 else weights


def check_rule(temperature: float, top_k: int, top_p: float) -> None:
    """Refuse numbers that describe no sampling rule."""
    if not (temperature >= 0 and math.isfinite(temperature)):
        raise ValueError(f"temperature is {temperature}; it must be 0 (greedy) or more")
    if top_k < 0:
        raise ValueError(f"top_k is {top_k}; it must be 0 (off) or more")
    if not 0 < top_p <= 1:
        raise ValueError(f"top_p is {top_p}; it must be above 0 and at most 1 (off)")


def _invert(weights: Tensor, u: Tensor) -> Tensor:
    """The first index whose cumulative weight exceeds u times the whole."""
    rows, size = weights.shape
    whole = size // BLOCK * BLOCK
    sums = weights[:, :whole].view(rows, -1, BLOCK).sum(-1)
    if whole < size:
        sums = torch.cat([sums, weights[:, whole:].sum(-1, keepdim=True)], dim=1)
    edges = sums.double().cumsum(-1)
    total = edges[:, -1:]
    broken = ~(total.isfinite() & (total > 0))[:, 0]
    # No token lies at the total itself, which u = 1 (a number rounded up) would ask for.
    target = torch.minimum(u.to(edges)[:, None] * total, _below(total))
    block = torch.searchsorted(edges, target, right=True).clamp_(max=edges.shape[1] - 1)
    before = torch.where(block > 0, edges.gather(1, (block - 1).clamp(min=0)), 0.0)

    index = block * BLOCK + torch.arange(BLOCK, device=weights.device)
    inside = weights.gather(1, index.clamp(max=size - 1)).double()
    inside = inside.masked_fill_(index >= size, 0.0).cumsum_(-1)
    # The block's own sum differs from `sums` by rounding; the rest must stay inside it.
    rest = torch.minimum(target - before, _below(inside[:, -1:]))
    offset = torch.searchsorted(inside, rest, right=True)
    return torch.where(broken, -1, (block * BLOCK + offset)[:, 0])


def _below(bound: Tensor) -> Tensor:
    return torch.nextafter(bound, torch.zeros_like(bound))


def _most_probable(weights: Tensor, top_k: int, top_p: float) -> Tensor:
    """Weights with everything outside the k most probable, then outside the nucleus, set to 0."""
    size = weights.shape[1]
    if 0 < top_k < size:
        values = weights.topk(top_k, dim=-1).values
        total = values.sum(-1, keepdim=True, dtype=torch.float64)
    else:
        values = weights.topk(min(NUCLEUS, size), dim=-1).values
        total = weights.sum(-1, keepdim=True, dtype=torch.float64)
        reached = values.sum(-1, keepdim=True, dtype=torch.float64) >= top_p * total
        if not bool(reached.all()):
            values = weights.sort(dim=-1, descending=True).values
    # A token is kept when the mass before it has not reached top_p yet.
    before = F.pad(values.double().cumsum(-1)[:, :-1], (1, 0))
    kept = (before < top_p * total).sum(-1, keepdim=True).clamp_(min=1)
    cut = values.gather(1, kept - 1)
    above = weights > cut
    ties = weights == cut
    room = kept - above.sum(-1, keepdim=True)
    return weights.masked_fill(~(above | (ties & (ties.cumsum(-1) <= room))), 0.0)
