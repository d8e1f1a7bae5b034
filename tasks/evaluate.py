"""The `evaluate` body: every policy on the same prompts with the same random numbers, judged by every reward.

Results are kept by position, not by name: two studies that call the same policies differently share one artifact.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from registry.artifacts import Artifact
from registry.methods.comparison import Interval, interval, win_rates
from registry.rows import Prompt
from registry.updates import soup_weights
from specs.soup import Soup
from tasks.answers import Answer, answer
from tasks.evaluation_table import EVALUATION, GENERATIONS
from tasks.inputs import prompts_of, write_lines
from tasks.job import Job, Result
from tasks.scores import Scores
from tasks.threads import use_threads

Array = NDArray[np.float64]


def evaluate(job: Job) -> Result:
    """Samples, scores, compares and writes `evaluation.json` and `generations.jsonl`."""
    use_threads(job.execution)
    prompts = prompts_of(job, "prompts")
    policies = list(job.many("policies"))
    reference = next((i for i, p in enumerate(policies) if p.fingerprint == job.one("against").fingerprint), None)
    if reference is None:
        reference = len(policies)
        policies.append(job.one("against"))
    known = Scores(job.execution, job.log)
    answers = answer(
        policies,
        prompts,
        samples=job.entry.budget.samples_per_prompt,
        max_new_tokens=job.entry.budget.max_new_tokens,
        seed=job.seed,
        execution=job.execution,
        log=job.log,
        scores=known,
    )
    rewards = [_judged(r, prompts, answers, known) for r in job.many("rewards")]

    def measured(values: Array) -> Interval:
        return interval(values, confidence=job.entry.confidence, resamples=job.entry.resamples, seed=job.seed)

    lengths = [np.array([[float(a.tokens) for a in row] for row in rows]) for rows in answers]
    evaluation = {
        "prompts": len(prompts),
        "samples_per_prompt": job.entry.budget.samples_per_prompt,
        "confidence": job.entry.confidence,
        "reference": reference,
        "policies": [
            {
                "fingerprint": policy.fingerprint,
                "length": measured(lengths[i].mean(axis=1))._asdict(),
                "finished": float(np.mean([a.finished for row in answers[i] for a in row])),
                "rewards": [
                    {
                        name: measured(values)._asdict()
                        for name, values in _found(policies, i, reference, scores).items()
                    }
                    for scores in rewards
                ],
            }
            for i, policy in enumerate(policies)
        ],
        "rewards": [r.fingerprint for r in job.many("rewards")],
    }
    text = json.dumps(evaluation, indent=1, allow_nan=False)
    (job.out / EVALUATION).write_text(text + "\n", encoding="utf-8")
    write_lines(job.out / GENERATIONS, _generations(prompts, answers, rewards))
    return Result()


def _found(policies: Sequence[Artifact], i: int, reference: int, scores: Sequence[Array]) -> dict[str, Array]:
    """By prompt, what a policy's rewards say of it."""
    means = [rewards.mean(axis=1) for rewards in scores]
    found = {
        "reward": means[i],
        "difference": means[i] - means[reference],
        "win_rate": win_rates(scores[i], scores[reference]),
    }
    gap = _lmc_gap(policies, policies[i], means, means[i])
    return found if gap is None else found | {"lmc_gap": gap}


def _lmc_gap(policies: Sequence[Artifact], soup: Artifact, means: Sequence[Array], mean: Array) -> Array | None:
    """Of a soup whose experts are among the policies: how far it lies above the chord between them (linear mode
    connectivity: R(sum of l_i theta_i) >= sum of l_i R(theta_i), Ramé et al., arXiv 2306.04488)."""
    if not isinstance(soup.entry, Soup):
        return None
    places = {policy.fingerprint: i for i, policy in enumerate(policies)}
    experts = [places.get(expert.fingerprint, -1) for expert in soup.inputs["experts"]]
    if min(experts) < 0:
        return None
    return mean - sum(w * means[e] for w, e in zip(soup_weights(soup), experts, strict=True))


def _judged(
    reward: Artifact, prompts: Sequence[Prompt], answers: list[list[list[Answer]]], known: Scores
) -> list[Array]:
    """`[policy]` of `[prompts, samples]`, all policies in one pass."""
    together = [[a.text for rows in answers for a in rows[p]] for p in range(len(prompts))]
    scores = np.array(known.of(reward, prompts, together))
    return np.split(scores, len(answers), axis=1)


def _generations(
    prompts: Sequence[Prompt], answers: list[list[list[Answer]]], rewards: list[list[Array]]
) -> list[dict[str, Any]]:
    return [
        {
            "prompt": list(prompt.messages),
            "policy": i,
            "sample": s,
            "response": a.text,
            "tokens": a.tokens,
            "finished": a.finished,
            "rewards": [float(scores[i][p, s]) for scores in rewards],
        }
        for p, prompt in enumerate(prompts)
        for i in range(len(answers))
        for s, a in enumerate(answers[i][p])
    ]
