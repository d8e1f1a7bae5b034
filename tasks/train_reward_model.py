"""The `reward_model` body: Bradley-Terry on preference pairs with TRL's RewardTrainer.

The trainer's score is beta times the reward, so that P(chosen preferred) = sigmoid(beta (r_chosen - r_rejected));
the head is divided by beta before it is saved.
"""

from __future__ import annotations

from typing import Any

import torch
from trl import RewardConfig, RewardTrainer

from registry.language_models import own_precision
from registry.reward_models import dialogue_ids, logits, reads, with_score_head
from registry.rows import Pair
from tasks.inputs import pairs_of
from tasks.job import Job, Result
from tasks.pair_accuracy import pair_accuracy
from tasks.threads import use_threads
from tasks.trained_weights import save
from tasks.trainer import Careful, train
from tasks.training import arguments, load_start, lora_config, numbered, pad_apart, training_rows


def train_reward_model(job: Job) -> Result:
    """Trains, tests and writes the adapter with its head (or all weights)."""
    use_threads(job.execution)
    base = load_start(job)
    model = with_score_head(base.model, job.seed)
    # As in use: a reward model reads every answer as a finished one, and all that the template writes after it.
    answers = [[(p.prompt, p.chosen, True), (p.prompt, p.rejected, True)] for p in pairs_of(job, "data")]
    rows, kept = training_rows(job, model, base.tokenizer, answers, classified=True)
    test = pairs_of(job, "test") if job.many("test") else []  # read before anything is spent on training
    columns = [{"chosen_ids": c[0] + c[1], "rejected_ids": r[0] + r[1]} for c, r in rows]
    pad_apart(base.tokenizer, model, [ids for c in columns for ids in c.values()])
    config = arguments(job, len(columns), own_precision(job.start))
    center = job.entry.center / job.entry.beta**2 or None
    trainer = CarefulReward(
        model=model,
        args=RewardConfig(**config, max_length=None, disable_dropout=False, center_rewards_coefficient=center),
        train_dataset=numbered(columns),
        processing_class=base.tokenizer,
        peft_config=lora_config(job.entry, "SEQ_CLS", modules_to_save=["score"]),
    )
    curve = train(trainer, job, rows, base.tokenizer)
    _divide_head(trainer.model, job.entry.beta)
    save(trainer, job)
    metrics = {"pairs": float(len(columns)), "dropped_too_long": float(len(answers) - len(kept))}
    metrics |= curve
    if test:
        metrics |= _test(trainer.model.eval(), base.tokenizer, test, job)
    return Result(metrics)


class CarefulReward(Careful, RewardTrainer):
    """TRL's trainer."""


def _divide_head(model: Any, beta: float) -> None:
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if name.endswith(("score.weight", "score.modules_to_save.default.weight")):
                parameter /= beta


def _test(model: Any, tokenizer: Any, pairs: list[Pair], job: Job) -> dict[str, float]:
    """Accuracy on held-out pairs beside the rule that the answer with more characters wins."""
    longest = reads(model, tokenizer, job.entry.max_length)
    rows = [dialogue_ids(tokenizer, p.prompt, answer, longest) for p in pairs for answer in (p.chosen, p.rejected)]
    scores = logits(
        model,
        rows,
        batch=job.execution.rows,
        on_progress=lambda done, total: job.log.progress(done, total, "test answers"),
    )[:, 0]
    pairwise = scores.reshape(-1, 2)
    margin = job.entry.beta * (pairwise[:, 0] - pairwise[:, 1])
    found = {"test/loss": float(-torch.nn.functional.logsigmoid(margin).mean())}
    return found | pair_accuracy(pairwise.tolist(), pairs, seed=job.seed)
