"""Stage bodies that make responses and pairs: `sample`, `label`, `decode`."""

from __future__ import annotations

import json
from statistics import fmean

from registry.methods.preferences import pairs_by_reward
from registry.rows import Prompt
from specs.problems import UserError
from tasks.answers import answer
from tasks.inputs import PAIRS, RESPONSES, prompts_of, read_lines, write_lines
from tasks.job import Job, Result
from tasks.scores import Scores
from tasks.threads import use_threads


def sample_responses(job: Job) -> Result:
    """`sample`: responses of a policy to prompts."""
    use_threads(job.execution)
    prompts = prompts_of(job, "prompts")
    (answers,) = answer(
        [job.one("from")],
        prompts,
        samples=job.entry.samples,
        max_new_tokens=job.entry.max_new_tokens,
        seed=job.seed,
        execution=job.execution,
        log=job.log,
        scores=Scores(job.execution, job.log),
    )
    rows = [
        {
            "prompt": list(p.messages),
            "responses": [{"text": a.text, "tokens": a.tokens, "finished": a.finished} for a in row],
        }
        for p, row in zip(prompts, answers, strict=True)
    ]
    write_lines(job.out / RESPONSES, rows)
    flat = [a for row in answers for a in row]
    return Result(
        {
            "responses": len(flat),
            "prompts": len(prompts),
            "tokens": sum(a.tokens for a in flat),
            "tokens_per_response": fmean(a.tokens for a in flat),
            "finished": fmean(a.finished for a in flat),
            "distinct": len({a.text for a in flat}) / len(flat),
        }
    )


def label_responses(job: Job) -> Result:
    """`label`: preference pairs out of responses by a reward."""
    use_threads(job.execution)
    folder = job.one("responses").folder
    assert folder is not None
    rows = list(read_lines(folder / RESPONSES))
    prompts = [Prompt(tuple(row["prompt"])) for row in rows]
    texts = [[r["text"] for r in row["responses"]] for row in rows]
    rewards = Scores(job.execution, job.log).of(job.one("reward"), prompts, texts)
    pairs = []
    without = 0
    for row, some, values in zip(rows, texts, rewards, strict=True):
        chosen = pairs_by_reward(values, some, at_most=job.entry.pairs_per_prompt, min_gap=job.entry.min_gap)
        without += not chosen
        pairs += [
            {
                "prompt": row["prompt"],
                "chosen": some[best],
                "rejected": some[worst],
                "chosen_finished": row["responses"][best]["finished"],
                "rejected_finished": row["responses"][worst]["finished"],
                "reward_chosen": values[best],
                "reward_rejected": values[worst],
            }
            for best, worst in chosen
        ]
    if not pairs:
        raise UserError(
            "no two responses to one prompt differ in reward by more than "
            f"{job.entry.min_gap:g}, so there is no pair; sample more or lower `min_gap`"
        )
    write_lines(job.out / PAIRS, pairs)
    every = [v for values in rewards for v in values]
    return Result(
        {
            "pairs": len(pairs),
            "prompts": len(rows),
            "prompts_without_pair": without,
            "reward": fmean(every),
            "reward_chosen": fmean(p["reward_chosen"] for p in pairs),
            "reward_rejected": fmean(p["reward_rejected"] for p in pairs),
        }
    )


def define_decoding(job: Job) -> Result:
    """`decode`: the rule itself; nothing is generated until something samples from it."""
    rule = json.dumps(dict(job.fields), indent=1, sort_keys=True)
    (job.out / "rule.json").write_text(rule + "\n", encoding="utf-8")
    return Result()
