"""A calibrated reward as a scorer: the rank of an answer's reward among rollouts of the reference to the same prompt.

A prompt that was not calibrated gets the mean of that rank over the prompts that were. A text that is one of the
rollouts has the reward that it had there, or rounding, which differs from batch to batch, would break the tie.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from registry.artifacts import Artifact
from registry.dialogue_text import Message
from registry.methods.calibration import mid_rank, pooled
from registry.rewards import Score
from registry.rows import Prompt

CALIBRATION = "calibration.jsonl"


def rollout_rewards(artifact: Artifact) -> dict[str, NDArray[np.float64]]:
    """The rewards [M] of the rollouts to each prompt that was calibrated, by the prompt's id."""
    return {row["prompt"]: np.array(row["rewards"]) for row in _rows(artifact)}


def _rows(artifact: Artifact) -> list[Any]:
    assert artifact.folder is not None
    with (artifact.folder / CALIBRATION).open(encoding="utf-8") as file:
        return [json.loads(line) for line in file]


def calibrated_scores(artifact: Artifact, inner: Score) -> Score:
    """Ranks in [0, 1] of the rewards that `inner` gives."""
    rows = _rows(artifact)
    rollouts = {row["prompt"]: np.array(row["rewards"]) for row in rows}
    rewarded = {row["prompt"]: dict(zip(row["texts"], row["rewards"], strict=True)) for row in rows}
    everything = list(rollouts.values())

    def score(prompts: Sequence[Sequence[Message]], answers: Sequence[str]) -> list[float]:
        rewards = np.array(inner(prompts, answers), dtype=float)
        ids = [Prompt(tuple(p)).id for p in prompts]
        strangers = np.array([name not in rollouts for name in ids], dtype=bool)
        ranks = np.empty(len(rewards))
        if strangers.any():
            ranks[strangers] = pooled(rewards[strangers], everything)
        for i in map(int, np.flatnonzero(~strangers)):
            reward = rewarded[ids[i]].get(answers[i], rewards[i])
            ranks[i] = mid_rank(np.array([reward]), rollouts[ids[i]])[0]
        return [float(u) for u in ranks]

    return score
