"""Processor threads of a stage's process."""

from __future__ import annotations

import torch

from registry.machine import threads
from specs.execution import Execution


def use_threads(execution: Execution) -> None:
    """Sets torch's threads to those of the study or of this process."""
    torch.set_num_threads(threads(execution.threads))
