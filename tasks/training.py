"""What both trainers share: tokenised pairs, TRL's arguments, adapters, and metrics sent as they come."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from peft import LoraConfig
from transformers import TrainerCallback

from registry.dialogue_text import encode_dialogue
from registry.reward_models import unused_id
from registry.rows import Pair
from specs.base import fraction
from specs.problems import UserError
from specs.training import Training
from tasks.inputs import TRAINING, write_lines
from tasks.job import Job, Log


def tokenised(
    tokenizer: Any, pairs: Sequence[Pair], sides: Sequence[str], entry: Training, where: str, limit: str
) -> tuple[list[list[tuple[list[int], list[int]]]], int]:
    """Each pair as `(prompt tokens, answer tokens)` for each of its `sides`, and how many pairs were
    dropped as too long. More than the share `limit` of them is a `UserError`."""
    kept, dropped = [], 0
    for pair in pairs:
        encoded = [encode_dialogue(tokenizer, pair.prompt, getattr(pair, side)) for side in sides]
        longest = max(len(p) + len(a) for p, a in encoded)
        if longest > entry.max_length and entry.too_long == "drop":
            dropped += 1
            continue
        kept.append([_cut(p, a, entry.max_length) for p, a in encoded])
    if dropped > fraction(limit) * len(pairs):
        share = 100 * dropped / len(pairs)
        raise UserError(
            f"{where}: {dropped} of {len(pairs)} pairs ({share:.1f} %) are longer than {entry.max_length} tokens, "
            f"more than max_dropped {limit}; raise `max_length`, or set `too_long: truncate_left`, or raise `max_dropped`"
        )
    if not kept:
        raise UserError(f"{where}: no pair is left to train on")
    return kept, dropped


def _cut(prompt: list[int], answer: list[int], longest: int) -> tuple[list[int], list[int]]:
    """The end of a dialogue; of an answer that is too long by itself, its end."""
    answer = answer[-longest:]
    room = longest - len(answer)
    return (prompt[-room:] if room else []), answer


def allowed_dropped(job: Job) -> str:
    """The share of rows of the stage's data that may be dropped; what a stage made has no such setting."""
    return str(getattr(job.one("data").entry, "max_dropped", "1%"))


def pad_apart(tokenizer: Any, model: Any, rows: Sequence[Sequence[int]]) -> None:
    """Lets the trainer pad with a token that no row holds, so that no real token is taken for padding. Of tokenizer
    and model either may have tokens that the other does not know."""
    tokenizer.pad_token_id = unused_id(rows, min(len(tokenizer), model.config.get_text_config().vocab_size))


def lora_config(entry: Training, task: str, **options: Any) -> LoraConfig | None:
    if entry.lora is None:
        return None
    return LoraConfig(
        r=entry.lora.rank,
        lora_alpha=entry.lora.alpha,
        lora_dropout=entry.lora.dropout,
        target_modules="all-linear",
        task_type=task,
        **options,
    )


def arguments(job: Job, scratch: Path, rows: int, precision: str) -> dict[str, Any]:
    """TRL configuration fields that every trainer takes. What is trained is fp32 (adapters, or all weights); with
    bf16 the forward pass runs under autocast, which on a processor is three times faster than adapters in fp32."""
    entry = job.entry
    micro = _micro_batch(entry.batch_size, job.execution.micro_batch)
    steps = max(1, round(entry.epochs * rows / entry.batch_size))
    cuda = torch.cuda.is_available()
    return {
        "output_dir": str(scratch),
        "per_device_train_batch_size": micro,
        "gradient_accumulation_steps": entry.batch_size // micro,
        "max_steps": steps,
        "learning_rate": entry.learning_rate,
        "lr_scheduler_type": "linear",
        "warmup_steps": entry.warmup_steps,
        "weight_decay": entry.weight_decay,
        "max_grad_norm": 1.0,
        "max_length": None,
        "logging_steps": max(1, steps // 50),
        "logging_first_step": True,
        "save_strategy": "no",
        "eval_strategy": "no",
        "report_to": "none",
        "disable_tqdm": True,
        "seed": job.seed,
        "data_seed": job.seed,
        "use_cpu": not cuda,
        "bf16": precision == "bf16",
        "gradient_checkpointing": cuda,
        "dataloader_pin_memory": cuda,
    }


def _micro_batch(batch: int, wanted: int) -> int:
    """The largest divisor of the batch that is at most `wanted`: accumulation changes nothing but rounding."""
    return max(d for d in range(1, min(batch, wanted) + 1) if batch % d == 0)


class Report(TrainerCallback):
    """Sends the trainer's logs and its progress to the stage's log."""

    def __init__(self, log: Log):
        self.log = log

    def on_log(self, args: Any, state: Any, control: Any, logs: Any = None, **_: Any) -> None:
        values = {f"train/{k}": float(v) for k, v in (logs or {}).items() if isinstance(v, (int, float))}
        if "train/loss" in values:
            self.log.metrics(state.global_step, values)

    def on_step_end(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        self.log.progress(state.global_step, state.max_steps, "steps")


def history(trainer: Any, out: Path) -> dict[str, float]:
    """Writes the curve of training, and returns its first and last logged loss."""
    curve = [entry for entry in trainer.state.log_history if "loss" in entry]
    write_lines(out / TRAINING, [{k: v for k, v in e.items() if isinstance(v, (int, float))} for e in curve])
    losses = [entry["loss"] for entry in curve]
    if not losses:
        return {}
    return {"train/first_loss": float(losses[0]), "train/last_loss": float(losses[-1])}
