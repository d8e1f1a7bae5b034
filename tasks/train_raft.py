"""The `raft` body, one round: sample from the current model, keep the best by reward, fine-tune on them.

Where held-out prompts are given, a round whose model does not earn more on them than the one before gives up what it
learnt: its artifact holds no weights and stands for the model it went on from, and so do the rounds after it.
"""

from __future__ import annotations

import dataclasses
import json
import shutil
from collections.abc import Sequence
from statistics import fmean
from typing import Any

import numpy as np
from numpy.typing import NDArray

from registry.artifacts import ADAPTER, WEIGHTS, Artifact
from registry.dialogue_text import encode_prompt
from registry.language_models import load_language_model
from registry.log_probs import score_rows
from registry.methods.raft import best_of_all, best_of_each, kl_penalised
from registry.rows import Prompt
from specs.problems import UserError
from tasks.answers import draw
from tasks.inputs import ROUND, distinct_prompts_of, prompts_of
from tasks.job import Job, Result
from tasks.memory import free_memory
from tasks.own_samples import Drawn, drawn_once, own_samples, scored, usable, write_samples
from tasks.pair_accuracy import spread
from tasks.rules import Rule
from tasks.threads import use_threads
from tasks.train_sft import fit
from tasks.training import check_lengths, load_start, training_rows

HELD_OUT_SAMPLES = 4
"""Samples to each held-out prompt; every round's have the same random numbers."""

Array = NDArray[np.float64]


def train_raft(job: Job) -> Result:
    """One round."""
    use_threads(job.execution)
    earlier = _earlier(job)
    if earlier.get("stopped"):
        (job.out / ROUND).write_text(json.dumps(earlier), encoding="utf-8")
        return Result({"trained": 0.0, "held_out/reward": fmean(earlier["held_out"])})
    prompts = distinct_prompts_of(job, "prompts")
    check_lengths(job, prompts, "prompts")
    held_out = prompts_of(job, "held_out") if job.many("held_out") else []
    before = np.array(earlier["held_out"] if "held_out" in earlier else _held_out(job, job.start, held_out, "before"))
    drawn = own_samples(job, prompts, samples=job.entry.samples, temperature=job.entry.temperature)
    rewards = np.array(scored(job, job.one("reward"), prompts, drawn))
    can = np.array([[usable(a) for a in row] for row in drawn])
    by, divergence = _ranked_by(job, prompts, drawn, rewards, can)
    local = job.entry.rank == "local"
    chosen = best_of_each(by, can) if local else best_of_all(by, can, job.entry.samples)
    if not chosen:
        raise UserError(
            "every sample is empty, so there is nothing to learn; raise `max_new_tokens` or look at the model"
        )
    picked = set(chosen)
    write_samples(job, prompts, drawn, rewards.tolist(), lambda p, s: "kept" if (p, s) in picked else "discarded")
    base = load_start(job)
    answers = [[(prompts[p].messages, drawn[p][s].text, drawn[p][s].finished)] for p, s in sorted(chosen)]
    rows, used = training_rows(job, base.model, base.tokenizer, answers, slot="prompts")
    metrics = _statistics(drawn, rewards, can, picked) | divergence
    metrics |= {"rows": float(len(rows)), "dropped_too_long": float(len(answers) - len(used))}
    metrics |= fit(job, base, rows)
    del base
    free_memory()
    return Result(metrics | _judge(job, held_out, before))


def _earlier(job: Job) -> dict[str, Any]:
    """What the round before has left."""
    for artifact in job.many("previous"):
        assert artifact.folder is not None
        found: dict[str, Any] = json.loads((artifact.folder / ROUND).read_bytes())
        return found
    return {}


def _ranked_by(
    job: Job, prompts: Sequence[Prompt], drawn: Drawn, rewards: Array, can: NDArray[np.bool_]
) -> tuple[Array, dict[str, float]]:
    """The rewards, less the penalty for having left the initial model. Where training begins from it there is none."""
    if not job.entry.kl_penalty or job.start.fingerprint == job.one("from").fingerprint:
        return rewards, {}
    current, initial = (_log_probs(job, model, prompts, drawn) for model in (job.start, job.one("from")))
    return kl_penalised(rewards, current, initial, job.entry.kl_penalty), {
        "log_ratio": float((current - initial)[can].mean()) if can.any() else 0.0
    }


def _log_probs(job: Job, artifact: Artifact, prompts: Sequence[Prompt], drawn: Drawn) -> Array:
    loaded = load_language_model(artifact)
    rows = [
        (
            encode_prompt(loaded.tokenizer, p.messages),
            [list(a.ids) for a in row],
        )
        for p, row in zip(prompts, drawn, strict=True)
    ]
    found = np.array(score_rows(loaded.model, rows, batch=job.execution.rows))
    del loaded
    free_memory()
    return found


def _held_out(job: Job, model: Artifact, prompts: Sequence[Prompt], when: str) -> list[float]:
    """Each held-out prompt's mean reward, `when` training has done what it did to the model."""
    if not prompts:
        return []

    def made() -> Drawn:
        asked = [Rule(model)], prompts, HELD_OUT_SAMPLES, job.entry.max_new_tokens, job.seed, job.execution, job.log
        (drawn,) = draw(*asked, stream="held out")
        free_memory()
        return drawn

    drawn = drawn_once(job, f"held-out-{when}", made)  # of a model that is split the first process alone has saved it
    return [fmean(row) for row in scored(job, job.one("reward"), prompts, drawn)]


def _judge(job: Job, prompts: Sequence[Prompt], before: Array) -> dict[str, float]:
    """Measures the new model on the held-out prompts, and lets go of it where it earns no more."""
    if not prompts:
        (job.out / ROUND).write_text(json.dumps({}), encoding="utf-8")
        return {"trained": 1.0}
    after = np.array(_held_out(job, dataclasses.replace(job.artifact, folder=job.out), prompts, "after"))
    gain = after - before
    risen = bool(gain.mean() > 0)
    best = after if risen else before
    (job.out / ROUND).write_text(json.dumps({"held_out": best.tolist(), "stopped": not risen}), encoding="utf-8")
    if not risen:
        job.log.note("the held-out reward did not rise: the model stays as it was, and later rounds train no more")
        for name in (ADAPTER, WEIGHTS):
            shutil.rmtree(job.out / name, ignore_errors=True)
    return (
        {"trained": float(risen)}
        | spread("held_out/before", before, seed=job.seed)
        | spread("held_out/reward", best, seed=job.seed)
        | spread("held_out/gain", gain, seed=job.seed)
    )


def _statistics(drawn: Drawn, rewards: Array, can: NDArray[np.bool_], picked: set[tuple[int, int]]) -> dict[str, float]:
    """What was kept beside what was discarded."""
    is_kept = np.zeros(rewards.shape, dtype=bool)
    is_kept[tuple(zip(*picked, strict=True))] = True
    tokens = np.array([[a.tokens for a in row] for row in drawn], dtype=float)
    ended = np.array([[a.finished for a in row] for row in drawn])
    texts = np.array([[a.text for a in row] for row in drawn], dtype=object)
    found = {"samples": float(rewards.size), "reward": float(rewards.mean()), "unusable": float((~can).sum())}
    for name, some in (("kept", is_kept), ("discarded", ~is_kept)):
        if some.any():
            found |= {
                f"{name}/samples": float(some.sum()),
                f"{name}/reward": float(rewards[some].mean()),
                f"{name}/tokens": float(tokens[some].mean()),
                f"{name}/finished": float(ended[some].mean()),
                f"{name}/distinct": len(set(texts[some])) / int(some.sum()),
            }
    return found | {"prompts_kept": float(len({p for p, _ in picked}))}
