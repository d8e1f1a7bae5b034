"""The `evaluate` body: every policy on the same prompts with the same random numbers, judged by every reward and judge.

Results are kept by position, not by name: two studies that call the same policies differently share one artifact.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from registry.artifacts import Artifact, soup_weights
from registry.methods.audits import length_bias
from registry.methods.best_of_n import expected_best
from registry.methods.comparison import best_of_n_win_rates, strict_win_rates, win_rates
from registry.methods.significance import FEWEST, draws_for, holm, minimum_detectable_effect, permutation_p
from registry.rows import Prompt
from specs.evaluation import Evaluate
from specs.soup import Soup
from tasks.account import Account
from tasks.answers import answer
from tasks.audited import Learnt, Met, apart, copied, of_seeds
from tasks.costs import counted, measured
from tasks.drawing import Answer
from tasks.evaluation_table import EVALUATION, GENERATIONS, MEASURED, TRACES
from tasks.inputs import distinct_prompts_of, pairs_of, write_lines
from tasks.job import Job, Result
from tasks.judged import judged, try_judges
from tasks.lineage import role
from tasks.properties import Properties
from tasks.rules import Rule, rule_of
from tasks.scores import Scores
from tasks.threads import use_threads

Array = NDArray[np.float64]

UNBOUNDED = {"reward", "difference", "lmc_gap"}
"""Of what a reward says of a policy; the rest are rates."""


def evaluate(job: Job) -> Result:
    """Samples, scores, compares and writes `evaluation.json`, `measured.json`, `generations.jsonl`, `traces.jsonl` and, with judges,
    `verdicts.jsonl`."""
    use_threads(job.execution)
    prompts = distinct_prompts_of(job, "prompts")
    policies = list(job.many("policies"))
    reference = next((i for i, p in enumerate(policies) if p.fingerprint == job.one("against").fingerprint), None)
    if reference is None:
        reference = len(policies)
        policies.append(job.one("against"))
    budget = job.entry.budget
    try_judges(job)
    known = Scores(job.execution, job.log)
    account = Account(rule_of(job.one("against")).model, job.scratch)
    answers = answer(
        policies,
        prompts,
        samples=budget.samples_per_prompt,
        max_new_tokens=budget.max_new_tokens,
        seed=job.seed,
        execution=job.execution,
        log=job.log,
        scores=known,
        account=account,
    )
    rewards = [_judged(r, prompts, answers, known) for r in job.many("rewards")]
    rules = [rule_of(policy) for policy in policies]
    properties, learnt, met = Properties(job, prompts), Learnt(), Met(prompts)
    likely = properties.likelihoods(rules, answers, account, known)
    if job.many("perplexity_of"):
        given = properties.of_given(rules, pairs_of(job, "perplexity_of"))
        for one, found in zip(likely, given, strict=True):
            one["perplexity"] |= {"given": found} if found else {}
    verdicts = judged(job, prompts, answers, reference, properties.interval)
    lengths = [np.array([[float(a.tokens) for a in row] for row in rows]) for rows in answers]
    by_reward = [
        [
            _of_reward(properties, policies, i, reference, scores, lengths[i] if rules[i].temperature else None)
            for scores in rewards
        ]
        for i in range(len(policies))
    ]
    chooser = _chooser(policies, job.many("rewards"))
    for place in range(len(rewards)):
        _count_comparisons(policies, [found[place]["difference"] for found in by_reward])
    evaluation = {
        "prompts": len(prompts),
        "samples_per_prompt": budget.samples_per_prompt,
        "max_new_tokens": budget.max_new_tokens,
        "confidence": job.entry.confidence,
        "reference": reference,
        "policies": [
            {
                "fingerprint": policy.fingerprint,
                **properties.wording(answers[i]),
                "met": met.by(policy),
                "copied": copied(properties, learnt.by(policy), answers[i]),
                **likely[i],
                "rewards": by_reward[i],
                "judges": verdicts[i],
                "apart": apart(properties, policy, job.many("rewards"), rewards, i, reference),
                "best_of": [
                    [{"n": n, **properties.interval(values)._asdict()} for n, values in curve]
                    for curve in _best_of(job, rules[i], chooser, prompts, account, known)
                ],
                "cost": counted(rules[i], account, budget.samples_per_prompt, prompts, known),
            }
            for i, policy in enumerate(policies)
        ],
        "over_seeds": of_seeds(properties, policies, rewards, reference),
        "rewards": [r.fingerprint for r in job.many("rewards")],
        "chooser": chooser,
        "judges": [judge.fingerprint for judge in job.many("judges")],
    }
    text = json.dumps(evaluation, indent=1, allow_nan=False)
    (job.out / EVALUATION).write_text(text + "\n", encoding="utf-8")
    spent = [measured(rule, account, budget.samples_per_prompt, known) for rule in rules]
    (job.out / MEASURED).write_text(json.dumps(spent, indent=1) + "\n", encoding="utf-8")
    traces = [(i, account.drawings[rule.source].events) for i, rule in enumerate(rules)]
    asked = prompts[0].messages[-1]["content"]
    write_lines(
        job.out / TRACES, [{"policy": i, "prompt": asked, "events": list(events)} for i, events in traces if events]
    )
    write_lines(job.out / GENERATIONS, _generations(prompts, answers, rewards))
    return Result()


def _of_reward(
    properties: Properties,
    policies: Sequence[Artifact],
    i: int,
    reference: int,
    scores: Sequence[Array],
    lengths: Array | None,
) -> dict[str, dict[str, float]]:
    """What a reward says of a policy: each value's mean over prompts with its interval, and of the difference whether it is
    chance. `lengths` of its answers; None where all samples to a prompt are one answer."""
    entry = properties.job.entry
    by_prompt = _by_prompt(entry, policies, i, reference, scores)
    found: dict[str, dict[str, float]] = {
        name: (properties.rate if name not in UNBOUNDED else properties.interval)(values)._asdict()
        for name, values in by_prompt.items()
    }
    if lengths is not None and lengths.shape[1] > 1 and len(biases := length_bias(scores[i], lengths)):
        found["length_bias"] = properties.interval(biases)._asdict() | {"prompts": len(biases)}
    if policies[i].fingerprint != policies[reference].fingerprint and len(scores[i]) > 1:
        difference = by_prompt["difference"]
        draws = draws_for(len({policy.fingerprint for policy in policies}) - 1, resamples=entry.resamples)
        found["difference"] |= {
            "p": permutation_p(difference, resamples=draws, seed=properties.job.seed),
        }
        if len(difference) >= FEWEST and np.ptp(difference) > 0:
            found["difference"]["detectable"] = minimum_detectable_effect(difference, confidence=entry.confidence)
    return found


def _count_comparisons(policies: Sequence[Artifact], differences: Sequence[dict[str, float]]) -> None:
    """Several policies are compared with one reference under one reward: their p-values as they stand among all of them. One
    policy under several names is one comparison."""
    distinct = {policy.fingerprint: d["p"] for policy, d in zip(policies, differences, strict=True) if "p" in d}
    counted = dict(zip(distinct, holm(list(distinct.values())), strict=True))
    for policy, difference in zip(policies, differences, strict=True):
        if policy.fingerprint in counted:
            difference["p_holm"] = counted[policy.fingerprint]


def _by_prompt(
    entry: Evaluate, policies: Sequence[Artifact], i: int, reference: int, scores: Sequence[Array]
) -> dict[str, Array]:
    """By prompt, what a policy's rewards say of it."""
    means = [rewards.mean(axis=1) for rewards in scores]
    found = {
        "reward": means[i],
        "difference": means[i] - means[reference],
        "win_rate": win_rates(scores[i], scores[reference]),
        "strict_win_rate": strict_win_rates(scores[i], scores[reference]),
    }
    for behind in entry.inference:
        sign = 1 if behind.method == "best_of_n" else -1
        ours, theirs = (sign * side for side in (scores[i], scores[reference]))
        wins = best_of_n_win_rates(ours, theirs, behind.n)
        found[behind.metric] = wins if sign > 0 else 1 - wins
    gap = _lmc_gap(policies, policies[i], means, means[i])
    return found if gap is None else found | {"lmc_gap": gap}


def _chooser(policies: Sequence[Artifact], rewards: Sequence[Artifact]) -> int:
    """The place of the reward that chooses among the draws of policies that have none of their own: the first that guides some
    policy, so that what is held out judges alone."""
    guiding = (place for place, r in enumerate(rewards) if any(role(policy, r) == "guides" for policy in policies))
    return next(guiding, 0)


def _best_of(
    job: Job, rule: Rule, chooser: int, prompts: Sequence[Prompt], account: Account, known: Scores
) -> Iterator[list[tuple[int, Array]]]:
    """Of a policy that draws at random: by reward, what it would be worth, prompt by prompt, with n draws to choose among,
    for n up to all that were drawn. Its own reward chooses, and of a policy without one that at `chooser`."""
    if rule.temperature == 0:
        return
    drawn = account.draws_of(rule, job.entry.budget.samples_per_prompt)
    texts, draws = [[a.text for a in row] for row in drawn], len(drawn[0])
    rewards = job.many("rewards")
    guide = rule.sign * np.array(known.of(rule.reward or rewards[chooser], prompts, texts))
    for reward in rewards:
        values = np.array(known.of(reward, prompts, texts))
        yield [(n, expected_best(guide, values, n)) for n in range(1, draws + 1)]


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
