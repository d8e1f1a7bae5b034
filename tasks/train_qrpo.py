"""The `qrpo` body: regression of the policy's log-ratio on a calibrated reward less its log-partition."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
from torch import Tensor

from registry.language_models import own_precision
from registry.log_probs import score_rows
from registry.methods.qrpo import loss as qrpo_loss
from registry.rows import Prompt
from specs.generation import Sample
from tasks.candidates import pairs_with_answers, train_on_candidates
from tasks.job import Job, Result
from tasks.scores import Scores
from tasks.threads import use_threads
from tasks.training import Answers, load_start, pair_answers, response_answers, training_rows
from tasks.transformed import log_partition, transformation


def train_qrpo(job: Job) -> Result:
    """Trains and writes the adapter (or all weights)."""
    use_threads(job.execution)
    answers = _answers(job)
    prompts = [Prompt(tuple(row[0][0])) for row in answers]
    calibration = job.one("reward")
    ranks = Scores(job.execution, job.log).of(calibration, prompts, [[text for _, text, _ in row] for row in answers])
    rollouts = int(calibration.fields["samples"])
    beta, transform = job.entry.beta, job.entry.transform
    phi = transformation(transform, beta, rollouts)
    log_z = log_partition(transform, beta, rollouts)
    base = load_start(job)
    rows, kept = training_rows(job, base.model, base.tokenizer, answers, one_prompt=True)
    # Once, before anything is trained: the reference need not be in memory beside the policy.
    reference = score_rows(
        base.model,
        [(row[0][0], [answer for _, answer in row]) for row in rows],
        batch=job.execution.rows,
        precision=own_precision(job.start),
        on_progress=lambda done, total: job.log.progress(done, total, "reference rows"),
    )

    def loss(log_probs: Tensor, lengths: Tensor, given: Mapping[str, Tensor]) -> tuple[Tensor, Mapping[str, Tensor]]:
        there = lengths > 0
        ratios = (log_probs - given["reference"]).masked_fill(~there, 0.0)
        each = qrpo_loss(given["target"].masked_fill(~there, 0.0), ratios, beta, log_z).masked_fill(~there, 0.0)
        count = there.sum(1)
        return each.sum(1) / count, {"log_ratio": ratios.sum(1) / count}

    given = {"reference": reference, "target": [phi(np.array(ranks[i])).tolist() for i in kept]}
    curve, _ = train_on_candidates(job, base, rows, given, loss)
    every = [u for i in kept for u in ranks[i]]
    return Result(
        {
            "rows": float(len(rows)),
            "responses": float(len(every)),
            "dropped_too_long": float(len(answers) - len(kept)),
            "calibrated_reward": float(np.mean(every)),
            "log_partition": log_z,
        }
        | curve
    )


def _answers(job: Job) -> list[Answers]:
    """Every answer of the data, those to one prompt together."""
    if isinstance(job.one("data").entry, Sample):
        return response_answers(job, "data")
    return pair_answers(pairs_with_answers(job, "data"))
