"""What a decoder holds in memory and what it computes, from its shape alone. Plain arithmetic: no model is made.

Layers have attention with grouped keys and a gated feed-forward part, as Llama, Qwen, Mistral and Gemma have. Other decoders
come out near enough to plan with.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

BYTES = {"fp32": 4, "bf16": 2}
FOUR_BITS = 0.5 + 4 / 64
"""Bytes of a weight in nf4: half, and a constant in fp32 for every 64."""
NARROW = 600
"""The width at which matrices are multiplied at half a processor's speed."""
IN_HAND = 2**24
"""Bytes of a layer's widest tensor, counted in fp32, in a pass over texts on a processor. In larger passes tensors leave its
caches, and the C library returns their memory to the system and fetches it anew: 64 dialogues of 87 tokens took
a reward model of SmolLM2-135M 9.0 s at once, 7.8 s by 32 and 6.8 s by 16, and 0.62, 0.43 and 0.35 GB."""
COLUMNS = 2048
"""Of the vocabulary, that answers' tokens are projected on at a time on a processor (`registry.log_probs`)."""
TRAINED = 12
"""Bytes beside each trained weight: its gradient and AdamW's two averages, in fp32."""


@dataclass(frozen=True, slots=True)
class Shape:
    """A decoder's dimensions."""

    parameters: int
    """All weights; those that are tied once."""
    linear: int
    """The weights of the linear maps inside the layers: what LoRA is laid on."""
    ends: int
    """Inputs and outputs of those maps, added up: the weights that one rank of LoRA has."""
    layers: int
    width: int
    """Of the residual stream."""
    inner: int
    """Of the feed-forward part."""
    queries: int
    """Heads times their size."""
    keys: int
    """Heads of keys times their size; values have as many."""
    vocabulary: int


@dataclass(frozen=True, slots=True)
class Work:
    """What a stage computes."""

    operations: float = 0.0
    """Of reading and drawing: as many as of wide matrices take the time."""
    trained: float = 0.0
    """Of training, counted alike: passes there and back."""
    launched: float = 0.0
    """Layers that were called, once for each pass through one."""
    moved: float = 0.0
    """Bytes of weights that passes went through."""
    loaded: float = 0.0
    """Bytes of weights that were read from the disk."""
    scored: float = 0.0
    """Texts that a reward without a model has scored."""

    def __add__(self, other: Work) -> Work:
        return Work(*(getattr(self, name) + getattr(other, name) for name in self.__slots__))

    def __mul__(self, times: float) -> Work:
        return Work(*(getattr(self, name) * times for name in self.__slots__))


def weights(shape: Shape, precision: str, *, four_bits: bool = False) -> float:
    """Bytes of the weights in memory; with `four_bits` those of the layers' linear maps are in nf4."""
    rest = shape.parameters - shape.linear if four_bits else shape.parameters
    return rest * BYTES[precision] + (shape.linear * FOUR_BITS if four_bits else 0.0)


def adapter(shape: Shape, rank: int) -> int:
    """The weights of a LoRA of that rank on every linear map."""
    return rank * shape.ends


def saved(shape: Shape, rank: int | None, precision: str) -> float:
    """Bytes that a layer keeps of each position for the backward pass; `rank` is LoRA's, None where all weights are trained.

    Two norms (input and normalised copy each), what the linear maps read, queries and keys before and after their rotation,
    keys and values as many as there are queries, gate, up, their activation and their product. Maps that LoRA leaves frozen
    do not keep what they read twice. Beside weights in bf16 it is half: training SmolLM2-135M took 2.2 GB
    of a process in bf16 where it took 4.5 GB in fp32.
    """
    own = 9 * shape.width if rank is None else 7 * shape.width + 7 * rank
    return BYTES[precision] * (own + 2 * (shape.queries - shape.width) + 4 * shape.keys + 4 * shape.inner)


def kept(shape: Shape, positions: float, rank: int | None, precision: str, *, recomputed: bool) -> float:
    """Bytes of activations in training. Where they are `recomputed`, each layer's input is kept, and one layer's all."""
    if not recomputed:
        return positions * shape.layers * saved(shape, rank, precision)
    return positions * (BYTES[precision] * shape.layers * shape.width + saved(shape, rank, precision))


def cached(shape: Shape, precision: str) -> int:
    """Bytes of keys and values of one position."""
    return 2 * shape.layers * shape.keys * BYTES[precision]


def passed(shape: Shape, positions: float, precision: str) -> float:
    """Bytes that a forward pass without gradients has in hand at once: those of its widest layer."""
    return positions * BYTES[precision] * (4 * shape.width + 3 * shape.inner + 2 * shape.queries)


def at_once(inner: int) -> int:
    """Positions of a pass over texts on a processor, whose feed-forward part is so wide; see `IN_HAND`."""
    return IN_HAND // (4 * inner)


def forward(shape: Shape, positions: float, predicted: float = 0.0, *, span: float = 0.0) -> float:
    """Operations of a forward pass, a multiplication and an addition for each weight that a position meets; `predicted`
    positions give logits, and each sees `span` others. Narrow matrices are counted for the time that they take."""
    seen = 4 * shape.queries * span * shape.layers
    operations = positions * (2 * shape.linear + seen) + 2 * predicted * shape.vocabulary * shape.width
    return operations * (1 + NARROW / shape.width)


def padded(lengths: Sequence[float], batch: int) -> float:
    """The mean width of a batch of rows drawn without order: of its longest row."""
    if not lengths:
        return 0.0
    ordered, count = sorted(lengths), len(lengths)
    return sum(length * (((i + 1) / count) ** batch - (i / count) ** batch) for i, length in enumerate(ordered))
