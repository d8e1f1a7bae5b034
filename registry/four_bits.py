"""The weights under an adapter in four bits: NF4 with double quantization (QLoRA: Dettmers et al., arXiv 2305.14314).

While it learns, an adapter lies on weights that are held in four bits; wherever it is used afterwards it lies on the same
weights, rounded to those four bits. So what is judged is what was trained. Only the weights below all adapters are rounded:
what earlier adapters have learnt is smaller than the steps of four bits. Heads are never rounded.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch
from torch import nn

from registry.artifacts import Artifact, bottom


def is_rounded(artifact: Artifact) -> bool:
    """Whether some adapter of the artifact was trained on weights in four bits: then all of them lie on such weights."""
    below = bottom(artifact)
    while artifact.fingerprint != below.fingerprint:
        if "experts" in artifact.inputs:
            return is_rounded(artifact.inputs["experts"][0])  # all are, or none
        lora = artifact.fields.get("lora")
        if lora is not None and lora["base"] == "nf4":
            return True
        artifact = artifact.start
    return False


def hold(model: Any) -> Any:
    """The model with the weights of its linear layers in four bits, and frozen."""
    import bitsandbytes

    for parent, name, linear in list(_layers(model)):
        held = bitsandbytes.nn.Linear4bit(
            linear.in_features,
            linear.out_features,
            bias=linear.bias is not None,
            compute_dtype=linear.weight.dtype,
            quant_type="nf4",
            device="meta",
        )
        # On processors with AVX512-BF16 a forward pass in evaluation mode would pack the weights for good into a form
        # that passes no gradients.
        held.support_avx512bf16_for_cpu = False
        held.weight = bitsandbytes.nn.Params4bit(linear.weight.data, requires_grad=False, quant_type="nf4", module=held)
        held.bias = linear.bias
        setattr(parent, name, held.to(linear.weight.device))
    return model.requires_grad_(False)


@torch.no_grad()
def rounded(model: Any) -> Any:
    """The model with the weights of its linear layers as four bits keep them, in the precision they had."""
    from bitsandbytes.functional import dequantize_4bit, quantize_4bit

    for _, _, linear in _layers(model):
        packed, state = quantize_4bit(linear.weight.data, quant_type="nf4", compress_statistics=True)
        linear.weight.data = dequantize_4bit(packed, state)
    return model


def _layers(model: Any) -> Iterator[tuple[nn.Module, str, nn.Linear]]:
    """The linear layers that adapters are laid on, each with its parent and its name there."""
    head = model.get_output_embeddings()
    for parent in model.modules():
        for name, child in parent.named_children():
            if isinstance(child, nn.Linear) and child is not head:
                yield parent, name, child
