"""The `qrpo` body: regression of the policy's log-ratio on a calibrated reward less its log-partition."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from statistics import fmean
from typing import Any

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from registry.calibration import rollout_rewards
from registry.language_models import own_precision
from registry.log_probs import score_rows
from registry.methods.qrpo import loss as qrpo_loss
from registry.rows import Prompt
from specs.generation import Sample
from specs.problems import UserError
from tasks.candidates import pairs_with_answers, train_on_candidates
from tasks.job import Job, Result
from tasks.own_samples import scored_once
from tasks.threads import use_threads
from tasks.training import Answers, load_start, pair_answers, response_answers, training_rows, without_weights
from tasks.transformed import log_partitions, transformation


def train_qrpo(job: Job) -> Result:
    """Trains and writes the adapter (or all weights)."""
    use_threads(job.execution)
    start = without_weights(job)
    all_answers = _answers(job)
    rows, kept = training_rows(job, start.model, start.tokenizer, all_answers, one_prompt=True)
    answers = [all_answers[i] for i in kept]
    prompts = [Prompt(tuple(row[0][0])) for row in answers]
    calibration = job.one("reward")
    rollouts = _rollouts(job, prompts)
    ranks = scored_once(job, calibration, prompts, [[text for _, text, _ in row] for row in answers])
    beta, transform = job.entry.beta, job.entry.transform
    phi = transformation(transform, beta, int(calibration.fields["samples"]))
    log_z = dict(zip(rollouts, log_partitions(transform, beta, list(rollouts.values())), strict=True))
    base = load_start(job)
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
        targets = given["target"].masked_fill(~there, 0.0)
        each = qrpo_loss(targets, ratios, beta, given["log_z"][:, None]).masked_fill(~there, 0.0)
        count = there.sum(1)
        return each.sum(1) / count, {"log_ratio": ratios.sum(1) / count}

    given: dict[str, Sequence[Any]] = {
        "reference": reference,
        "target": [phi(np.array(row)).tolist() for row in ranks],
        "log_z": [log_z[prompt.id] for prompt in prompts],
    }
    curve, _ = train_on_candidates(job, base, rows, given, loss)
    every = [u for row in ranks for u in row]
    learnt = {prompt.id for prompt in prompts}
    return Result(
        {
            "rows": float(len(rows)),
            "responses": float(len(every)),
            "dropped_too_long": float(len(all_answers) - len(kept)),
            "calibrated_reward": float(np.mean(every)),
            "log_partition": fmean(log_z[prompt] for prompt in learnt),
            "share_without_signal": fmean(np.ptp(rollouts[prompt]) == 0 for prompt in learnt),
        }
        | curve
    )


def _answers(job: Job) -> list[Answers]:
    """Every answer of the data, those to one prompt together."""
    if isinstance(job.one("data").entry, Sample):
        return response_answers(job, "data")
    return pair_answers(pairs_with_answers(job, "data"))


def _rollouts(job: Job, prompts: Sequence[Prompt]) -> dict[str, NDArray[np.float64]]:
    """The rewards of the rollouts to each prompt, by its id. Raises `UserError` where some were not calibrated."""
    data, calibration = job.one("data"), job.one("reward")
    known = rollout_rewards(calibration)
    ids = dict.fromkeys(p.id for p in prompts)
    strange = sum(prompt not in known for prompt in ids)
    if strange:
        raise UserError(
            f"{strange} of the {len(ids)} prompts of `{data.name}` were not calibrated by `{calibration.name}`, and each "
            f"needs a log-partition of its own; name them in the `prompts` of `{calibration.name}`, or leave them out"
        )
    return {prompt: known[prompt] for prompt in ids}
