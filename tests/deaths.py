"""Stages whose process dies on the way."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
from transformers import TrainerCallback


class Died(Exception):
    """What stands for a kill."""


def dies(*_: Any, **__: Any) -> Any:
    raise Died


class DiesAfter(TrainerCallback):
    """In the place of the clock: a checkpoint after a step, and death after the next."""

    def __init__(self, step: int):
        self.step = step

    def on_step_end(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        control.should_save = state.global_step == self.step
        if state.global_step == self.step + 1:
            raise Died


@contextmanager
def dying(folder: Path) -> Iterator[pytest.MonkeyPatch]:
    """Within it the process that builds a stage in `folder` dies of what is patched."""
    with pytest.MonkeyPatch.context() as patch, pytest.raises(Died):
        yield patch
    shutil.rmtree(folder)  # as the store does before it builds again
