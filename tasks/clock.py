"""What work took: seconds of the clock, and of the device that did it."""

from __future__ import annotations

import time
from typing import NamedTuple

import torch


class Spent(NamedTuple):
    wall: float
    """Seconds that passed."""
    device: float
    """Those of the processor's cores, all together; of a GPU those for which it was held."""

    def times(self, share: float) -> Spent:
        return Spent(self.wall * share, self.device * share)

    def plus(self, other: Spent) -> Spent:
        return Spent(self.wall + other.wall, self.device + other.device)


NOTHING = Spent(0.0, 0.0)


class Clock:
    """Runs from where it is made. Of work on a GPU the result is to be there before it is read."""

    def __init__(self) -> None:
        self._wall, self._processor = time.monotonic(), time.process_time()

    def read(self) -> Spent:
        wall = time.monotonic() - self._wall
        return Spent(wall, wall if torch.cuda.is_available() else time.process_time() - self._processor)
