"""Processor threads of a stage's process."""

from __future__ import annotations

import os

import torch

from specs.execution import Execution


def use_threads(execution: Execution) -> None:
    """Sets torch's threads to `execution.threads`, else to the cores this process may use."""
    torch.set_num_threads(execution.threads or len(os.sched_getaffinity(0)))
