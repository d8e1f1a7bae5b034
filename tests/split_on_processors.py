"""Runs a module as `python -m` does, with accelerate told that it may split models over processors: it does so over devices
only, though what it builds on (FSDP2, DeepSpeed's ZeRO, over gloo) can. `split_on_processors.py -m MODULE ARGUMENT`."""

from __future__ import annotations

import os
import runpy
import sys
from typing import Any

from accelerate import state
from accelerate.utils import DistributedType
from transformers import TrainingArguments

_init = state.AcceleratorState.__init__
_post_init = TrainingArguments.__post_init__


def _fsdp(self: Any, *args: Any, **options: Any) -> None:
    _init(self, *args, **options)
    if options.get("fsdp_plugin") is None:
        return  # asked for again
    self.distributed_type = DistributedType.FSDP
    self.fsdp_plugin = options["fsdp_plugin"]
    state.PartialState._shared_state["distributed_type"] = DistributedType.FSDP


def _deepspeed(self: Any) -> None:
    self.use_cpu = False  # accelerate asks DeepSpeed then, which finds the processor by itself
    _post_init(self)


if __name__ == "__main__":
    if "ACCELERATE_USE_FSDP" in os.environ:
        state.AcceleratorState.__init__ = _fsdp
    else:
        TrainingArguments.__post_init__ = _deepspeed
    module, sys.argv = sys.argv[2], sys.argv[2:]
    runpy.run_module(module, run_name="__main__", alter_sys=True)
