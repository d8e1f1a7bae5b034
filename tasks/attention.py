"""Attention for several queries a row, on key/value heads as they are held.

Where query heads share a key/value head, transformers copies keys and values once for each of them as soon as a row has
more than one query: for siblings behind a long prompt that is most of what a step moves. Here the query heads that share a
head become further queries of it. Each query's softmax is its own, so the result is the same but for rounding.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from torch import Tensor
from torch.nn.functional import scaled_dot_product_attention
from transformers import AttentionInterface, AttentionMaskInterface
from transformers.integrations.sdpa_attention import sdpa_attention_forward
from transformers.masking_utils import sdpa_mask

GROUPED = "grouped_sdpa"


@contextmanager
def grouped_heads(model: Any) -> Iterator[None]:
    """The model attends so meanwhile, where its attention is torch's own and its query heads share keys and values."""
    config = model.config.get_text_config()
    shared = getattr(config, "num_key_value_heads", None) or config.num_attention_heads
    if config._attn_implementation != "sdpa" or shared == config.num_attention_heads:
        yield
        return
    config._attn_implementation = GROUPED
    try:
        yield
    finally:
        config._attn_implementation = "sdpa"
        _Wide.mask = _Wide.wide = None


class _Wide:
    """The mask of the pass under way, and as all the queries of a key/value head take it: one for all layers."""

    mask: Tensor | None = None
    wide: Tensor | None = None


def _grouped(
    module: Any, query: Tensor, key: Tensor, value: Tensor, attention_mask: Tensor | None, **settings: Any
) -> tuple[Tensor, None]:
    groups = getattr(module, "num_key_value_groups", 1)
    rows, heads, queries, size = query.shape
    simple = settings.get("softcap") is None and settings.get("position_bias") is None
    if queries == 1 or groups == 1 or attention_mask is None or attention_mask.shape[1] != 1 or not simple:
        return sdpa_attention_forward(module, query, key, value, attention_mask, **settings)  # type: ignore[no-any-return]  # transformers tells no type
    if _Wide.mask is not attention_mask:
        _Wide.mask, _Wide.wide = attention_mask, attention_mask.repeat(1, 1, groups, 1)
    found = scaled_dot_product_attention(
        query.reshape(rows, heads // groups, groups * queries, size),
        key,
        value,
        attn_mask=_Wide.wide,
        dropout_p=settings.get("dropout", 0.0),
        scale=settings.get("scaling"),
    )
    return found.reshape(rows, heads, queries, -1).transpose(1, 2).contiguous(), None


AttentionInterface.register(GROUPED, _grouped)
AttentionMaskInterface.register(GROUPED, sdpa_mask)
