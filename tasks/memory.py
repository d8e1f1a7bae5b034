"""Memory between models: what one stage's models held is given back before the next is loaded."""

from __future__ import annotations

import gc

import torch


def free_memory() -> None:
    gc.collect()
    if torch.cuda.is_available():
        torch.cuda.empty_cache()
