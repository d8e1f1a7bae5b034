"""The `calibrate` body: rollouts of the reference to each prompt and their rewards, and whether the rank is uniform."""

from __future__ import annotations

import json
from collections.abc import Sequence
from statistics import fmean
from typing import Any

import numpy as np
from numpy.typing import NDArray

from registry.calibration import CALIBRATION
from registry.methods.calibration import self_excluded, uniformity
from registry.rows import Prompt
from tasks.answers import answer
from tasks.inputs import UNIFORMITY, distinct_prompts_of, write_lines
from tasks.job import Job, Result
from tasks.own_samples import Drawn, drawn_once, scored
from tasks.scores import Scores
from tasks.threads import use_threads


def calibrate(job: Job) -> Result:
    """Draws, scores, tests, and writes each prompt's rewards in order, each with its text."""
    use_threads(job.execution)
    prompts = distinct_prompts_of(job, "prompts")
    scores = Scores(job.execution, job.log)

    def rolled_out() -> Drawn:
        (drawn,) = answer(
            [job.one("reference")],
            prompts,
            samples=job.entry.samples + 1,
            max_new_tokens=job.entry.max_new_tokens,
            seed=job.seed,
            execution=job.execution,
            log=job.log,
            scores=scores,
            stream="calibrate",
        )
        return drawn

    drawn = drawn_once(job, "rollouts", rolled_out)
    rewards = np.array(scored(job, job.one("reward"), prompts, drawn, scores))
    rollouts, fresh = rewards[:, :-1], rewards[:, -1]
    test = uniformity(fresh, list(rollouts), job.seed)
    write_lines(
        job.out / CALIBRATION,
        [_row(p, row, [a.text for a in some]) for p, row, some in zip(prompts, rollouts, drawn, strict=True)],
    )
    statistic, p_value = float(test.statistic), float(test.p_value)
    found = {"statistic": statistic, "p_value": p_value, "values": [float(u) for u in test.values]}
    (job.out / UNIFORMITY).write_text(json.dumps(found) + "\n", encoding="utf-8")
    distinct = fmean(len(np.unique(row)) for row in rollouts) / job.entry.samples
    ranks = np.array([self_excluded(row) for row in rollouts])
    return Result(
        {
            "prompts": float(len(prompts)),
            "samples": float(job.entry.samples),
            "uniformity/statistic": statistic,
            "uniformity/p_value": p_value,
            "rank_variance": float(ranks.var()),
            "distinct_rewards": distinct,
            "prompts_without_signal": float((np.ptp(rollouts, axis=1) == 0).sum()),
            "reward": float(rollouts.mean()),
            "tokens_per_response": fmean(a.tokens for row in drawn for a in row),
            "finished": fmean(a.finished for row in drawn for a in row),
        }
    )


def _row(prompt: Prompt, rewards: NDArray[np.float64], texts: Sequence[str]) -> dict[str, Any]:
    order = np.argsort(rewards, kind="stable")
    return {"prompt": prompt.id, "rewards": rewards[order].tolist(), "texts": [texts[i] for i in order]}
