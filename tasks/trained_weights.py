"""The weights of a model that was trained, written or asked as a whole also where several processes hold parts of them."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

from torch import Tensor
from torch.distributed.fsdp import FSDPModule

from registry.artifacts import ADAPTER, WEIGHTS
from tasks.job import Job


def save(trainer: Any, job: Job) -> None:
    """Writes what was trained: the adapter, or all weights."""
    state = gathered(trainer)
    if state is None or state:
        save_weights(trainer.accelerator.unwrap_model(trainer.model), job, state)


def gathered(trainer: Any) -> dict[str, Tensor] | None:
    """All weights where several processes hold a part each, for the first of them, and nothing for the others; None
    where every process has them all."""
    if not (trainer.is_fsdp_enabled or trainer.is_deepspeed_enabled):
        return None
    state: dict[str, Tensor] = trainer.accelerator.get_state_dict(trainer.model_wrapped)
    return state if trainer.is_world_process_zero() else {}


@contextmanager
def whole(model: Any) -> Iterator[None]:
    """Every process has all the weights of a model that FSDP splits: each may then call it as often as it likes, which
    with the parts of others would wait for theirs."""
    split = [module for module in model.modules() if isinstance(module, FSDPModule)]
    for module in split:
        module.set_reshard_after_forward(False, recurse=False)
        module.unshard()
    try:
        yield
    finally:
        for module in split:
            module.reshard()
            module.set_reshard_after_forward(True, recurse=False)


def save_weights(model: Any, job: Job, state: Mapping[str, Tensor] | None = None) -> None:
    """Writes the adapter, or all weights; `state` in the place of the model's own."""
    folder = job.out / (WEIGHTS if job.entry.lora is None else ADAPTER)
    if state is not None:  # apart, tied weights are no longer seen to be one
        state = {name: t for name, t in state.items() if name not in model.all_tied_weights_keys}
    for settings in getattr(model, "peft_config", {}).values():
        # PEFT keeps a set, which every process orders otherwise.
        settings.target_modules = sorted(settings.target_modules)
    model.save_pretrained(folder, state_dict=state, safe_serialization=True)
