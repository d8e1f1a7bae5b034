"""The `evaluate` body: every policy on the same prompts with the same random numbers, judged by every reward and judge.

Results are kept by position, not by name: two studies that call the same policies differently share one artifact.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from registry.artifacts import Artifact
from registry.methods.best_of_n import expected_best
from registry.methods.comparison import Interval, best_of_n_win_rates, interval, win_rates
from registry.rows import Prompt
from registry.updates import soup_weights
from specs.evaluation import Evaluate
from specs.soup import Soup
from tasks.answers import Answer, answer, rule_of
from tasks.evaluation_table import EVALUATION, GENERATIONS
from tasks.inputs import prompts_of, write_lines
from tasks.job import Job, Result
from tasks.judged import judged, try_judges
from tasks.scores import Scores
from tasks.threads import use_threads

Array = NDArray[np.float64]


def evaluate(job: Job) -> Result:
    """Samples, scores, compares and writes `evaluation.json`, `generations.jsonl` and, with judges, `verdicts.jsonl`."""
    use_threads(job.execution)
    prompts = prompts_of(job, "prompts")
    policies = list(job.many("policies"))
    reference = next((i for i, p in enumerate(policies) if p.fingerprint == job.one("against").fingerprint), None)
    if reference is None:
        reference = len(policies)
        policies.append(job.one("against"))
    try_judges(job)
    known = Scores(job.execution, job.log)
    candidates: dict[str, list[list[Answer]]] = {}
    answers = answer(
        policies,
        prompts,
        samples=job.entry.budget.samples_per_prompt,
        max_new_tokens=job.entry.budget.max_new_tokens,
        seed=job.seed,
        execution=job.execution,
        log=job.log,
        scores=known,
        candidates=candidates,
    )
    rewards = [_judged(r, prompts, answers, known) for r in job.many("rewards")]

    def measured(values: Array) -> Interval:
        return interval(values, confidence=job.entry.confidence, resamples=job.entry.resamples, seed=job.seed)

    verdicts = judged(job, prompts, answers, reference, measured)
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
                        for name, values in _found(job.entry, policies, i, reference, scores).items()
                    }
                    for scores in rewards
                ],
                "judges": verdicts[i],
                "best_of": [
                    [{"n": n, **measured(values)._asdict()} for n, values in curve]
                    for curve in _best_of(job, policy, prompts, candidates.get(policy.fingerprint), known)
                ],
            }
            for i, policy in enumerate(policies)
        ],
        "rewards": [r.fingerprint for r in job.many("rewards")],
        "judges": [judge.fingerprint for judge in job.many("judges")],
    }
    text = json.dumps(evaluation, indent=1, allow_nan=False)
    (job.out / EVALUATION).write_text(text + "\n", encoding="utf-8")
    write_lines(job.out / GENERATIONS, _generations(prompts, answers, rewards))
    return Result()


def _found(
    entry: Evaluate, policies: Sequence[Artifact], i: int, reference: int, scores: Sequence[Array]
) -> dict[str, Array]:
    """By prompt, what a policy's rewards say of it."""
    means = [rewards.mean(axis=1) for rewards in scores]
    found = {
        "reward": means[i],
        "difference": means[i] - means[reference],
        "win_rate": win_rates(scores[i], scores[reference]),
    }
    for behind in entry.inference:
        sign = 1 if behind.method == "best_of_n" else -1
        ours, theirs = (sign * side for side in (scores[i], scores[reference]))
        wins = best_of_n_win_rates(ours, theirs, behind.n)
        found[behind.metric] = wins if sign > 0 else 1 - wins
    gap = _lmc_gap(policies, policies[i], means, means[i])
    return found if gap is None else found | {"lmc_gap": gap}


def _best_of(
    job: Job, policy: Artifact, prompts: Sequence[Prompt], candidates: list[list[Answer]] | None, known: Scores
) -> Iterator[list[tuple[int, Array]]]:
    """Of a policy that chooses among draws: by reward, what it would be worth, prompt by prompt, with n of them for n up
    to all that were drawn."""
    if candidates is None:
        return
    rule = rule_of(policy)
    assert rule.reward is not None
    texts = [[a.text for a in row] for row in candidates]
    guide = rule.sign * np.array(known.of(rule.reward, prompts, texts))
    draws = guide.shape[1]
    for reward in job.many("rewards"):
        judged = np.array(known.of(reward, prompts, texts))
        yield [(n, expected_best(guide, judged, n)) for n in range(1, draws + 1)]


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
