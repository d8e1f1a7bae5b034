"""How fast this machine goes through a decoder's layers: `python -m registry.timing PRECISION THREADS` prints it as JSON.

Eight layers of a small Llama with adapters, of 57 MB in bf16, are gone through as where texts are read, and
forth and back as where the adapters are trained; two seconds each, of which the quickest pass counts: whatever else runs on the
machine can only slow one down.
"""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Callable
from typing import Any

import torch
from peft import LoraConfig, get_peft_model
from torch import Tensor
from transformers import LlamaConfig, LlamaModel

from registry.methods import footprint

SECONDS, LEAST = 2.0, 3
ROWS, TOKENS = 8, 64


def main(precision: str, threads: int) -> dict[str, float]:
    """Operations a second, as `footprint.forward` counts them, of reading and of training."""
    torch.set_num_threads(threads)
    dtype = {"bf16": torch.bfloat16, "fp32": torch.float32}[precision]
    config = LlamaConfig(
        hidden_size=576, intermediate_size=1536, num_hidden_layers=8, num_attention_heads=9, num_key_value_heads=3,
        vocab_size=1,
    )  # fmt: skip
    bare = LlamaModel(config).to(dtype)
    linear = sum(weight.numel() for weight in bare.layers.parameters() if weight.ndim > 1)
    layers: Any = get_peft_model(bare, LoraConfig(r=16, target_modules="all-linear"))
    texts = torch.randn(ROWS, TOKENS, config.hidden_size, dtype=dtype)

    def passed(inputs: Tensor) -> Tensor:
        with torch.autocast("cpu", torch.bfloat16, enabled=precision == "bf16"):
            found: Tensor = layers(inputs_embeds=inputs, use_cache=False).last_hidden_state
        return found

    def trained() -> None:
        passed(texts.clone().requires_grad_()).sum().backward()

    shape = footprint.Shape(
        parameters=0, linear=linear, ends=0, layers=config.num_hidden_layers, width=config.hidden_size,
        inner=config.intermediate_size, queries=config.hidden_size, keys=192, vocabulary=config.vocab_size,
    )  # fmt: skip
    once = footprint.forward(shape, ROWS * TOKENS, span=TOKENS / 2)
    with torch.no_grad():
        reading = once / _best(lambda: passed(texts))
    return {"reading": reading, "training": 2 * once / _best(trained)}


def _best(call: Callable[[], object]) -> float:
    """Seconds of one. The first, which makes kernels, does not count."""
    call()
    found: list[float] = []
    end = time.perf_counter() + SECONDS
    while len(found) < LEAST or time.perf_counter() < end:
        began = time.perf_counter()
        call()
        found.append(time.perf_counter() - began)
    return min(found)


if __name__ == "__main__":
    sys.stdout.write(json.dumps(main(sys.argv[1], int(sys.argv[2]))))
