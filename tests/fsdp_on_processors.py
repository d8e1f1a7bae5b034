"""Runs a module as `python -m` does, with accelerate told that it may split models over processors: it does so over devices
only, though everything below it (FSDP2 over gloo) can. `fsdp_on_processors.py -m MODULE ARGUMENT`."""

from __future__ import annotations

import runpy
import sys
from typing import Any

from accelerate import state
from accelerate.utils import DistributedType

_init = state.AcceleratorState.__init__


def _split(self: Any, *args: Any, **options: Any) -> None:
    _init(self, *args, **options)
    plugin = options.get("fsdp_plugin")
    if plugin is not None and self.distributed_type is DistributedType.MULTI_CPU:
        self.distributed_type = DistributedType.FSDP
        self.fsdp_plugin = plugin
        state.PartialState._shared_state["distributed_type"] = DistributedType.FSDP


if __name__ == "__main__":
    state.AcceleratorState.__init__ = _split
    module, sys.argv = sys.argv[2], sys.argv[2:]
    runpy.run_module(module, run_name="__main__", alter_sys=True)
