"""What both trainers share: tokenised pairs, TRL's arguments, adapters, and metrics sent as they come."""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from peft import LoraConfig
from transformers import TrainerCallback

from registry.dialogue_text import Message, cut_left, encode_answer, encode_prompt
from registry.reward_models import reads, unused_id
from registry.rows import percent, too_many
from specs.data import Data
from specs.problems import UserError
from specs.training import Training
from tasks.inputs import TRAINING, write_lines
from tasks.job import Job, Log

Answers = Sequence[tuple[Sequence[Message], str, bool]]
"""The answers of one row that are learnt together: prompt, text, and whether it is finished (an unfinished one is
given no end)."""

Tokenised = list[tuple[list[int], list[int]]]
"""`(prompt tokens, answer tokens)` of each answer of a row."""


def training_rows(job: Job, model: Any, tokenizer: Any, rows: Sequence[Answers]) -> tuple[list[Tokenised], int]:
    """What the stage trains on, and how many rows were dropped as too long. A `UserError` if they are more than the
    data's `max_dropped`; what a stage made has no such setting, and 1 % may go."""
    data = job.one("data")
    longest = reads(model, tokenizer, job.entry.max_length)
    kept = tokenised(tokenizer, rows, longest, job.entry.too_long)
    dropped = len(rows) - len(kept)
    external = isinstance(data.entry, Data)
    allowed = data.entry.max_dropped if isinstance(data.entry, Data) else "1%"
    where = f"data.{data.name}" if external else data.name
    if too_many(dropped, len(rows), allowed):
        limited = longest < job.entry.max_length
        remedies = [
            *([] if limited else ["raise `max_length`"]),
            "set `too_long: truncate_left`",
            *(["raise `max_dropped`"] if external else []),
        ]
        raise UserError(
            f"{where}: {dropped} of {len(rows)} pairs ({percent(dropped, len(rows))}) are longer than {longest} tokens"
            f"{', all that the model reads' if limited else ''}; {allowed} may be dropped; {' or '.join(remedies)}"
        )
    if not kept:
        raise UserError(f"{where}: no pair is left to train on")
    return kept, dropped


def tokenised(tokenizer: Any, rows: Sequence[Answers], longest: int, too_long: str) -> list[Tokenised]:
    """The rows as tokens, those with an answer that is too long left out or cut."""
    kept = []
    for row in rows:
        encoded = [(encode_prompt(tokenizer, p), encode_answer(tokenizer, p, a, finished=end)) for p, a, end in row]
        if too_long == "truncate_left" or max(len(p) + len(a) for p, a in encoded) <= longest:
            kept.append([cut_left(tokenizer, p, a, longest) for p, a in encoded])
    return kept


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
    steps = math.ceil(entry.epochs * math.ceil(rows / entry.batch_size))
    cuda = torch.cuda.is_available()
    return {
        "output_dir": str(scratch),
        "per_device_train_batch_size": micro,
        "gradient_accumulation_steps": entry.batch_size // micro,
        "num_train_epochs": entry.epochs,
        "learning_rate": entry.learning_rate,
        "lr_scheduler_type": "linear",
        "warmup_steps": entry.warmup_steps,
        "weight_decay": entry.weight_decay,
        "max_grad_norm": 1.0,
        "max_length": None,
        "logging_steps": max(1, steps // 50),
        "logging_first_step": True,
        "logging_nan_inf_filter": False,  # it would put a mean in the place of a loss that is none
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
    """The largest divisor of the batch that is at most `wanted`."""
    return max(d for d in range(1, min(batch, wanted) + 1) if batch % d == 0)


class Report(TrainerCallback):
    """Sends the trainer's logs and its progress to the stage's log."""

    def __init__(self, log: Log):
        self.log = log

    def on_log(self, args: Any, state: Any, control: Any, logs: Any = None, **_: Any) -> None:
        values = {f"train/{k}": float(v) for k, v in (logs or {}).items() if isinstance(v, (int, float))}
        lost = [name for name, value in values.items() if not math.isfinite(value)]
        if lost:
            raise UserError(
                f"training diverged: {lost[0]} is {values[lost[0]]} at step {state.global_step}; lower `learning_rate`"
            )
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
