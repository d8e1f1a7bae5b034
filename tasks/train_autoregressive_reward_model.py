"""The `autoregressive_reward_model` body: GenARM's preference loss on sums of token log-probabilities."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace

from torch import Tensor

from registry.language_models import own_precision
from registry.log_probs import score_rows
from registry.methods.autoregressive_reward import preference_loss
from tasks.candidates import held_out, pairs_with_answers, train_on_candidates
from tasks.job import Job, Result
from tasks.pair_accuracy import pair_accuracy
from tasks.threads import use_threads
from tasks.training import load_start, pair_answers, training_rows


def train_autoregressive_reward_model(job: Job) -> Result:
    """Trains, tests and writes the adapter (or all weights)."""
    use_threads(job.execution)
    base = load_start(job)
    answers = pair_answers(pairs_with_answers(job, "data"))
    rows, kept = training_rows(job, base.model, base.tokenizer, answers, one_prompt=True)
    # Read before anything is spent on training. As in use: a reward reads every answer as a finished one.
    pairs = pairs_with_answers(job, "test") if job.many("test") else []
    tested, test = held_out(job, base, [replace(p, chosen_finished=True, rejected_finished=True) for p in pairs])
    beta = job.entry.beta

    def loss(log_probs: Tensor, _: Tensor, __: Mapping[str, Tensor]) -> tuple[Tensor, Mapping[str, Tensor]]:
        chosen, rejected = log_probs.unbind(1)
        right = (chosen > rejected).float()
        return preference_loss(chosen, rejected, beta), {"accuracy": right, "margin": chosen - rejected}

    curve, model = train_on_candidates(job, base, rows, {}, loss)
    metrics = {"pairs": float(len(rows)), "dropped_too_long": float(len(answers) - len(kept))} | curve
    if test:
        scores = score_rows(
            model,
            tested,
            batch=job.execution.rows,
            precision=own_precision(job.start),
            on_progress=lambda done, total: job.log.progress(done, total, "test pairs"),
        )
        metrics |= pair_accuracy(scores, test, seed=job.seed)
    return Result(metrics)
