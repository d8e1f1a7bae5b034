"""What a stage will hold, compute and write, before it runs: from its settings, the rows it is given and its models' shapes.

What comes of stages that have not run yet is reckoned from their settings. `tasks.foretold` knows each kind; here is what
kinds share: texts, models in memory, drawing, reading, training.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from registry.artifacts import Artifact
from registry.methods import footprint
from registry.methods.footprint import Shape, Work
from registry.rows import too_many
from registry.shapes import shape_of
from specs.calibration import Calibrate
from specs.execution import Execution
from specs.preference_training import AutoregressiveRewardModel
from specs.rewards import Coherence, Weighted
from tasks.read_along import guides_of
from tasks.rules import Rule, rule_of
from tasks.standing import is_model, precision_of, root
from tasks.texts import Texts, Unknown, texts

FLOOR = 520e6
"""Bytes of a stage's process before it does anything: the libraries that are loaded."""
KERNELS = 0.22e9
"""Bytes of what a processor's library compiles for bf16, anew for each shape of texts that it meets."""
KERNELS_A_POLICY, ALL_KERNELS = 0.06e9, 0.9e9
"""The same where many policies are compared, for ever new shapes: that library keeps 1,024 of them. Measured of 2, 13 and 38
policies."""
HEAP, MAPPED = 1.9, 32 * 2**20
"""Bytes of a host's process to a byte of activations in small blocks: the C library keeps those in heaps, between blocks of
other sizes. The larger they are the less lies between them, and those of `MAPPED` bytes are given back whole."""
TILE, TOKENS, ALL_COLUMNS = 8, 4096, 32_768
"""Copies in fp32 that TRL's head makes of a tile of logits on a processor, the most positions of one, and its columns on GPUs,
where kernels work on the one copy."""
DRAWN = 28
"""Bytes to each logit that a token is drawn by: in fp32 and, sorted and summed, in double precision."""
SIDE_BY_SIDE = 2.8
"""Copies of the logits of answers that two models read side by side."""
TOGETHER = 1024
"""Tokens of answers that are so read at a time (`tasks.divergence`)."""
PREFILL = 16
"""Prompts that are read at a time (`tasks.batch`)."""
ON_DEVICE = 1.15
"""Bytes that the device's allocator takes to each that is asked for."""
CONTEXT = 0.6e9
"""Bytes of a device that its driver and libraries take."""
FULL = 0.9
"""The length of a sampled answer to the most that it may have, where no earlier run tells."""


@dataclass
class Foreseen:
    """Of one stage."""

    host: float = 0.0
    """The most bytes in use at once."""
    device: float = 0.0
    disk: float = 0.0
    """Bytes of what it leaves."""
    passing: float = 0.0
    """Bytes on the disk that go again: checkpoints."""
    work: Work = field(default_factory=Work)
    certain: float = 0.0
    """Bytes of weights alone that are held at once: no stage of these settings can do with less."""
    parameters: float = 0.0
    """Of the largest model at work."""
    precision: str = "fp32"
    """That model's, where it computes."""
    lost: dict[str, None] = field(default_factory=dict)
    """Rows that will not be used, and why, each a line."""


@dataclass
class Reckoning:
    """What is added up while a stage is gone through."""

    execution: Execution
    home: Path
    share: float = FULL
    """The length of a sampled answer to the most that it may have."""
    found: Foreseen = field(default_factory=Foreseen)
    _times: float = 1.0
    _kernels: float = 0.0

    # Models.

    def shape(self, artifact: Artifact) -> Shape:
        """Of the external model at the bottom."""
        below = root(artifact)
        found = shape_of(below)
        if found is None:
            raise Unknown(f"the shape of `{below.name}` is not known until it is on this machine")
        if found.parameters > self.found.parameters:
            self.found.parameters, self.found.precision = found.parameters, precision_of(artifact)
        return found

    def weights(self, artifact: Artifact, precision: str | None = None, *, four_bits: bool = False) -> float:
        return footprint.weights(self.shape(artifact), precision or precision_of(artifact), four_bits=four_bits)

    def reward_weights(self, reward: Artifact) -> float:
        """Bytes of the models that a reward is made of."""
        if isinstance(reward.entry, Calibrate):
            return self.reward_weights(reward.one("reward"))
        if isinstance(reward.entry, Weighted):
            return sum(map(self.reward_weights, reward.inputs["of"]))
        if isinstance(reward.entry, Coherence):
            return self.weights(reward, "fp32")
        return self.weights(reward) if is_model(reward) else 0.0

    # Phases. Of each: what is in memory, what it computes.

    def hold(self, weights: float, activations: float) -> None:
        """A phase with so many bytes of weights and of everything else."""
        if self.execution.gpus:
            self.found.device = max(self.found.device, CONTEXT + ON_DEVICE * (weights + activations))
            self.found.host = max(self.found.host, 5 * FLOOR + weights)
        else:
            self.found.host = max(self.found.host, FLOOR + self._kernels + weights + activations)
        self.found.certain = max(self.found.certain, weights)

    def meet_shapes(self, precision: str, policies: int = 0) -> None:
        """From here on whole texts of many lengths are read in this precision, of so many policies that are compared."""
        if precision == "bf16" and not self.execution.gpus:
            self._kernels = max(self._kernels, min(ALL_KERNELS, KERNELS + KERNELS_A_POLICY * policies))

    def in_blocks(self, amount: float, block: float) -> float:
        """Bytes that so many bytes in blocks of that size come to."""
        return amount if self.execution.gpus else amount * (1 + (HEAP - 1) * max(0.0, 1 - block / MAPPED))

    def logits(self, copies: float, positions: float, shape: Shape) -> float:
        """Bytes of copies of the logits at so many positions, in fp32."""
        one = positions * shape.vocabulary * 4
        return self.in_blocks(copies * one, one)

    def tile(self, positions: float, shape: Shape) -> float:
        """Bytes of the logits of so many positions that are in memory where only log-probabilities are asked for."""
        if self.execution.gpus:
            return 4 * min(positions, TOKENS) * min(ALL_COLUMNS, shape.vocabulary)
        one = 4 * min(positions, TOKENS) * min(footprint.COLUMNS, shape.vocabulary)
        return self.in_blocks(TILE * one, one)

    def compute(self, work: Work) -> None:
        self.found.work += work * self._times

    @contextmanager
    def repeated(self, times: float) -> Iterator[None]:
        """What is computed within is computed so many times, by models that are loaded once."""
        before, self._times = self._times, times
        try:
            yield
        finally:
            self._times = before

    def load(self, artifact: Artifact, precision: str | None = None) -> float:
        weights = self.weights(artifact, precision)
        self.found.work += Work(loaded=weights)
        return weights

    def answered(self, limit: int) -> float:
        """Tokens of a sampled answer."""
        return max(1.0, self.share * limit)

    def texts(self, artifact: Artifact, model: Artifact) -> Texts:
        """What rows a slot's artifact gives, in the tokens of a model."""
        found = texts(artifact, model, self.home, self.share)
        self.found.lost |= dict.fromkeys([found.lost] if found.lost else [])
        return found

    def fitting(self, found: Texts, entry: Any, data: Artifact | None = None) -> Texts:
        """What a stage that trains keeps of its rows; `data` gave them. Of answers that are still to be sampled the usual
        length counts."""
        kept = found.fitting(entry)
        if kept.rows < found.rows:
            lost, many = len(found.prompts) - len(kept.prompts), len(found.prompts)
            of = f"{many:,}" if many == found.rows else f"{many:,} that stand for {found.rows:,.0f}"
            about = "about " if found.sampled else ""
            allowed = getattr(data and data.entry, "max_dropped", "1%")
            refused = f": the stage will refuse them, for {allowed} may be" if too_many(lost, many, allowed) else ""
            told = f"are longer than `max_length: {entry.max_length}` and dropped{refused}"
            self.found.lost[f"{about}{lost:,} of {of} rows {told}"] = None
        return kept

    def draw(self, policy: Artifact, asked: Texts, samples: int, limit: int, *, beside: float = 0.0) -> None:
        """Answers of a policy to each prompt; those of best-of-n are all drawn, and scored."""
        rule = rule_of(policy)
        draws = 1 if rule.temperature == 0 else samples * rule.n
        self.draw_of(rule, asked, draws, limit, beside=beside)
        if rule.reward is not None:
            self.score(rule.reward, asked.asked(draws, self.answered(limit), limit))

    def draw_of(self, rule: Rule, asked: Texts, draws: int, limit: int, *, beside: float = 0.0) -> None:
        """`beside` is what else is in memory."""
        shape, precision = self.shape(rule.model), precision_of(rule.model)
        held = beside + self.load(rule.model)
        answers, tokens = asked.rows * draws, self.answered(limit)
        guides = list(guides_of(rule))
        branches = max([g.branches for g in guides], default=1)
        slots = min(max(self.execution.rows // branches, 1), answers)
        room = asked.longest_prompt + limit
        cache = slots * room * footprint.cached(shape, precision)
        steps = max(tokens, answers * tokens / slots)
        logits = slots * branches * shape.vocabulary * DRAWN
        read = footprint.forward(shape, asked.rows * asked.prompt, asked.rows, span=asked.prompt / 2)
        each = footprint.forward(shape, 1, 1, span=asked.prompt + tokens / 2)
        held_by_guides = 0.0
        work = Work(
            operations=read + answers * tokens * branches * each,
            launched=(steps + math.ceil(asked.rows / PREFILL)) * shape.layers,
            moved=steps * footprint.weights(shape, precision),
        )
        for guide in guides:
            if guide.artifact is None:
                continue
            other = self.shape(guide.artifact)
            if root(guide.artifact).fingerprint != root(rule.model).fingerprint:
                held_by_guides += self.load(guide.artifact)
            cache += slots * (room + guide.width) * footprint.cached(other, precision_of(guide.artifact))
            work += Work(
                operations=footprint.forward(other, asked.rows * asked.prompt)
                + answers * tokens * guide.width * footprint.forward(other, 1, guide.predicted, span=room / 2),
                launched=steps * guide.passes * other.layers,
                moved=steps * guide.passes * self.weights(guide.artifact),
            )
        first = footprint.passed(shape, min(PREFILL, asked.rows) * asked.longest_prompt, precision)
        self.hold(held + held_by_guides, cache + max(logits, first))
        self.compute(work)

    def score(self, reward: Artifact, read: Texts, *, beside: float = 0.0) -> None:
        """A reward of every answer to every prompt."""
        if isinstance(reward.entry, Calibrate):
            return self.score(reward.one("reward"), read, beside=beside)
        if isinstance(reward.entry, Weighted):
            for part in reward.inputs["of"]:
                self.score(part, read, beside=beside)
            return None
        answers = read.rows * read.each
        if not is_model(reward):
            return self.compute(Work(scored=answers))
        shape = self.shape(reward)
        precision = precision_of(reward)
        width = read.prompt + read.tokens / max(read.each, 1)
        longest = read.longest_prompt + read.longest_answer
        most = float(self.execution.rows)
        if not isinstance(reward.entry, Coherence):
            most = min(most, self._at_once(shape, longest))
        rows = min(most, answers)
        batch = rows * longest
        by_token = isinstance(reward.entry, AutoregressiveRewardModel)
        passed = self.in_blocks(footprint.passed(shape, batch, precision), 4 * batch * shape.inner)
        self.meet_shapes(precision)
        self.hold(beside + self.load(reward), passed + by_token * self.tile(rows * read.longest_answer, shape))
        predicted = by_token * read.rows * read.tokens
        self.compute(self._reading(shape, precision, answers * width, predicted, answers / most, width))
        return None

    def read(self, model: Artifact, read: Texts, *, beside: float = 0.0, times: float = 1.0) -> None:
        """The log-probabilities of all answers, each prompt read once."""
        shape, held = self.shape(model), precision_of(model)
        widths, longest = read.side_by_side()
        each = sum(widths) / max(len(widths), 1)
        rows = max(1.0, min(self.execution.rows / max(read.each, 1), self._at_once(shape, longest)))
        batch = min(rows, read.rows) * longest
        tile = self.tile(rows * read.most_answered, shape)
        self.meet_shapes(held)
        self.hold(beside + footprint.weights(shape, held), footprint.passed(shape, batch, held) + tile)
        work = self._reading(shape, held, read.rows * each, read.rows * read.tokens, read.rows / rows, each)
        self.compute(work * times)

    def _at_once(self, shape: Shape, width: float) -> float:
        """Rows of that width that are read in one pass (`registry.batches`)."""
        return math.inf if self.execution.gpus else max(1.0, footprint.at_once(shape.inner) // max(width, 1.0))

    def compare(self, model: Artifact, reference: Artifact, read: Texts) -> None:
        """Answers read by a policy's model and by the reference side by side."""
        shape = self.shape(model)
        same = model.fingerprint == reference.fingerprint
        rows = max((sum(row) for row in read.answers), default=0.0)
        self.meet_shapes(precision_of(model))
        self.hold(self.weights(reference), self.logits(SIDE_BY_SIDE * (1 if same else 2), min(TOGETHER, rows), shape))
        width = read.prompt + read.tokens
        work = self._reading(shape, precision_of(model), read.rows * width, read.rows * read.tokens, read.rows, width)
        self.compute(work * (1 if same else 2))

    def _reading(
        self, shape: Shape, precision: str, positions: float, predicted: float, passes: float, span: float
    ) -> Work:
        passes = math.ceil(passes)
        return Work(
            operations=footprint.forward(shape, positions, predicted, span=span / 2),
            launched=passes * shape.layers,
            moved=passes * footprint.weights(shape, precision),
        )

    def leave(self, size: float) -> None:
        """Bytes that stay on the disk."""
        self.found.disk += size
