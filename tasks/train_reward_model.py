"""The `reward_model` body: Bradley-Terry on preference pairs with TRL's RewardTrainer.

The trainer's score is beta times the reward, so that P(chosen preferred) = sigmoid(beta (r_chosen - r_rejected));
the head is divided by beta before it is saved.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from datasets import Dataset
from transformers import set_seed
from trl import RewardConfig, RewardTrainer
from trl.trainer.utils import disable_dropout_in_model

from registry.language_models import ADAPTER, WEIGHTS, load_language_model, own_precision
from registry.methods.comparison import accuracy, interval
from registry.reward_models import dialogue_ids, logits, reads, with_score_head
from registry.rows import Pair
from tasks.inputs import pairs_of
from tasks.job import Job, Result
from tasks.threads import use_threads
from tasks.training import (
    Report,
    arguments,
    history,
    lora_config,
    pad_apart,
    training_rows,
)


def train_reward_model(job: Job) -> Result:
    """Trains, tests and writes the adapter with its head (or all weights)."""
    use_threads(job.execution)
    set_seed(job.seed)
    full = job.entry.lora is None
    base = load_language_model(job.one("from"), precision="fp32" if full else None)
    model = with_score_head(base.model, job.seed)
    disable_dropout_in_model(model)  # the base's own; the adapters' is the person's
    # As in use: a reward model reads every answer as a finished one.
    answers = [[(p.prompt, p.chosen, True), (p.prompt, p.rejected, True)] for p in pairs_of(job, "data")]
    rows, dropped = training_rows(job, model, base.tokenizer, answers)
    test = pairs_of(job, "test") if job.many("test") else []  # read before anything is spent on training
    columns = [{"chosen_ids": c[0] + c[1], "rejected_ids": r[0] + r[1]} for c, r in rows]
    pad_apart(base.tokenizer, model, [ids for c in columns for ids in c.values()])
    config = arguments(job, job.out / "scratch", len(columns), own_precision(job.one("from")))
    center = job.entry.center / job.entry.beta**2 or None
    trainer = WeightedByRows(
        model=model,
        args=RewardConfig(**config, disable_dropout=False, center_rewards_coefficient=center),
        train_dataset=Dataset.from_list(columns),
        processing_class=base.tokenizer,
        peft_config=lora_config(job.entry, "SEQ_CLS", modules_to_save=["score"]),
        callbacks=[Report(job.log)],
    )
    trainer.train()
    _divide_head(trainer.model, job.entry.beta)
    trainer.model.save_pretrained(job.out / (WEIGHTS if full else ADAPTER), safe_serialization=True)
    metrics = {"pairs": float(len(columns)), "dropped_too_long": float(dropped)}
    metrics |= history(trainer, job.out)
    if test:
        metrics |= _test(trainer.model.eval(), base.tokenizer, test, job)
    return Result(metrics)


class WeightedByRows(RewardTrainer):
    """TRL's trainer gives every micro-batch of an optimizer step the same weight; here each pair has the same, so that
    the last step of an epoch, whose micro-batches differ in size, does not depend on `micro_batch`."""

    def get_batch_samples(self, epoch_iterator: Any, num_batches: int, device: Any) -> Any:
        batches, items = super().get_batch_samples(epoch_iterator, num_batches, device)
        sizes = [len(batch["input_ids"]) for batch in batches]
        self.mean_size = sum(sizes) / max(len(sizes), 1)
        return batches, items

    def compute_loss(self, model: Any, inputs: Any, **options: Any) -> Any:
        return super().compute_loss(model, inputs, **options) * (len(inputs["input_ids"]) / self.mean_size)


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
    chosen, rejected = scores[0::2].numpy().astype(float), scores[1::2].numpy().astype(float)
    lengths = np.array([[len(p.chosen), len(p.rejected)] for p in pairs], dtype=float)
    right = accuracy(chosen, rejected)
    longer = accuracy(lengths[:, 0], lengths[:, 1])
    found = {"test/pairs": float(len(pairs))}
    for name, values in (
        ("accuracy", right),
        ("length_baseline", longer),
        ("accuracy_minus_length_baseline", right - longer),
    ):
        measured = interval(values, confidence=0.95, resamples=2000, seed=job.seed)
        found |= {
            f"test/{name}": measured.estimate,
            f"test/{name}_low": measured.low,
            f"test/{name}_high": measured.high,
        }
    margin = chosen - rejected
    beta = job.entry.beta
    found["test/loss"] = float(np.logaddexp(0, -beta * margin).mean())
    found["test/mean_margin"] = float(margin.mean())
    return found
