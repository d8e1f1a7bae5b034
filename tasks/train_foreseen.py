"""What training will hold and compute, whatever is learnt: weights, adapters and their averages, activations, logits."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

from registry.artifacts import Artifact
from registry.methods import footprint
from registry.methods.footprint import Work
from tasks.foreseen import FLOOR, Reckoning
from tasks.standing import precision_of


def train(
    r: Reckoning,
    entry: Any,
    start: Artifact,
    rows: float,
    widths: Sequence[float],
    longest: float,
    *,
    sequences: int = 1,
    predicted: float = 0.0,
    each: int = 1,
    reference: bool = False,
    head: float = 0.0,
    beside: float = 0.0,
) -> None:
    """Training on `rows` rows of `sequences` sequences; where the policy draws them itself, of `each` samples, and `widths`,
    `longest` and `predicted`, the tokens of a row that give logits, are those of one. `head` is the weights of a head of its
    own, `beside` what else is in memory; with a `reference` each batch is read once more."""
    shape = r.shape(start)
    rank = entry.lora.rank if entry.lora is not None else None
    quantised = entry.lora is not None and entry.lora.base == "nf4"
    precision = "fp32" if rank is None else precision_of(start)
    processes = r.execution.training_processes
    micro = r.execution.micro(max(1, entry.batch_size // processes) * each)
    own = shape.parameters if rank is None else footprint.adapter(shape, rank)
    trained = own + head
    held = beside + footprint.weights(shape, precision, four_bits=quantised)
    r.compute(Work(loaded=footprint.weights(shape, precision_of(start))))
    if reference and rank is None:
        held += footprint.weights(shape, "fp32")
    fp32_copy = 0.0 if rank is None else 4 * own
    recomputed = r.execution.gradient_checkpointing
    recomputed = bool(r.execution.gpus) if recomputed is None else recomputed
    positions = micro * sequences * longest
    kept = footprint.kept(shape, positions, rank, precision, recomputed=recomputed)
    kept = r.in_blocks(kept, footprint.BYTES[precision] * positions * shape.inner)
    state = fp32_copy + footprint.TRAINED * trained + 4 * head
    together = 1 if r.execution.gpus else processes
    r.meet_shapes(precision)
    r.hold(together * held, together * (state + kept + r.tile(micro * predicted, shape)) + (together - 1) * FLOOR)
    passes = math.ceil(entry.epochs * rows * each / micro / processes)
    width = footprint.padded(widths, max(1, micro // each)) * sequences
    positions = entry.epochs * rows * each * width
    projected = positions * min(1.0, predicted / max(sequences * longest, 1.0))
    times = (3 if rank is None else 2) + (1 if recomputed else 0)
    once = footprint.forward(shape, positions, projected, span=width / sequences / 2)
    rehearsed = footprint.forward(shape, micro * sequences * longest, micro * predicted, span=longest / 2)
    apart = processes // together  # those on a processor share its threads
    calls = 3 if rank is None else 6  # a layer with adapters is three layers' calls
    r.compute(
        Work(
            operations=reference * once / apart + rehearsed,
            trained=times * once / apart,
            launched=passes * shape.layers * (calls + (2 if reference else 0)),
            moved=passes * 3 * footprint.weights(shape, precision),
        )
    )
    r.leave(4 * trained + 8e3 + min(50, passes) * 250)
    r.found.passing = 12 * trained
