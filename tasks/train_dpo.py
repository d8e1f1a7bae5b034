"""The `dpo` body: TRL's DPOTrainer on given pairs, or on the best and the worst of the model's own samples."""

from __future__ import annotations

from statistics import fmean
from typing import Any

from trl import DPOConfig, DPOTrainer

from registry.language_models import load_language_model, own_precision
from registry.methods.preferences import pairs_by_reward
from registry.rows import Pair
from specs.problems import UserError
from tasks.inputs import pairs_of, prompts_of
from tasks.job import Job, Result
from tasks.own_samples import own_samples, scored, usable, write_samples
from tasks.threads import use_threads
from tasks.trained_weights import save
from tasks.trainer import Careful, train
from tasks.training import (
    arguments,
    check_lengths,
    load_start,
    lora_config,
    numbered,
    pad_apart,
    pair_answers,
    training_rows,
)


def train_dpo(job: Job) -> Result:
    """Trains and writes the adapter (or all weights)."""
    use_threads(job.execution)
    metrics: dict[str, float] = {}
    if job.many("data"):
        slot, pairs = "data", pairs_of(job, "data")
    else:
        slot = "prompts"
        pairs, metrics = _own_pairs(job)
    base = load_start(job)
    answers = pair_answers(pairs)
    rows, kept = training_rows(job, base.model, base.tokenizer, answers, slot=slot, one_prompt=True)
    columns = [{"prompt_ids": c[0], "chosen_ids": c[1], "rejected_ids": r[1]} for c, r in rows]
    pad_apart(base.tokenizer, base.model, [p + a for row in rows for p, a in row])
    lora = lora_config(job.entry, "CAUSAL_LM")
    trainer = CarefulDPO(
        model=base.model,
        # With an adapter the reference is the model without it; else the same weights, in the same precision.
        ref_model=None if lora else load_language_model(job.start, precision="fp32").model,
        args=DPOConfig(
            **arguments(job, len(columns), own_precision(job.start)),
            max_length=None,
            beta=job.entry.beta,
            disable_dropout=False,
        ),
        train_dataset=numbered(columns),
        processing_class=base.tokenizer,
        peft_config=lora,
    )
    metrics |= {"pairs": float(len(rows)), "dropped_too_long": float(len(answers) - len(kept))}
    metrics |= train(trainer, job, rows, base.tokenizer)
    save(trainer, job)
    return Result(metrics)


class CarefulDPO(Careful, DPOTrainer):
    """TRL's trainer on rows that are tokens already."""

    def _prepare_dataset(self, dataset: Any, *_: Any, **__: Any) -> Any:
        return dataset


def _own_pairs(job: Job) -> tuple[list[Pair], dict[str, float]]:
    """The best and the worst of the model's usable samples to each prompt, by the reward."""
    prompts = prompts_of(job, "prompts")
    check_lengths(job, prompts, "prompts")
    drawn = own_samples(job, prompts, samples=job.entry.samples)
    rewards = scored(job, job.one("reward"), prompts, drawn)
    pairs: list[Pair] = []
    uses: dict[tuple[int, int], str] = {}
    for p, (prompt, row, values) in enumerate(zip(prompts, drawn, rewards, strict=True)):
        there = [s for s, a in enumerate(row) if usable(a)]
        found = pairs_by_reward(
            [values[s] for s in there], [row[s].text for s in there], at_most=1, min_gap=job.entry.min_gap
        )
        for best, worst in ((there[b], there[w]) for b, w in found):
            pairs.append(
                Pair(prompt.messages, row[best].text, row[worst].text, row[best].finished, row[worst].finished)
            )
            uses |= {(p, best): "chosen", (p, worst): "rejected"}
    if not pairs:
        raise UserError(
            "no two samples to one prompt differ in reward enough to make a pair; draw more or lower `min_gap`"
        )
    write_samples(job, prompts, drawn, rewards, lambda p, s: uses.get((p, s), "unused"))
    flat = [r for row in rewards for r in row]
    return pairs, {
        "reward": fmean(flat),
        "reward_chosen": fmean(rewards[p][s] for (p, s), use in uses.items() if use == "chosen"),
        "reward_rejected": fmean(rewards[p][s] for (p, s), use in uses.items() if use == "rejected"),
        "prompts": float(len(prompts)),
        "prompts_without_pair": float(len(prompts) - len(pairs)),
    }
