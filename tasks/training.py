"""What training stages share before they train: tokenised rows, the trainer's arguments, adapters."""

from __future__ import annotations

import math
import os
from collections.abc import Sequence
from types import SimpleNamespace
from typing import Any

import torch
from accelerate.utils import parse_flag_from_env
from datasets import Dataset
from peft import LoraConfig
from transformers import set_seed
from trl.trainer.utils import disable_dropout_in_model

from registry.artifacts import Artifact
from registry.dialogue_text import Message, cut_left, encode_answer, encode_dialogue, encode_prompt
from registry.language_models import (
    LanguageModel,
    config_of,
    load_language_model,
    load_tokenizer,
    own_precision,
)
from registry.reward_models import reads, unused_id
from registry.rows import Pair, Prompt, percent, too_many
from specs.data import Data
from specs.problems import UserError
from specs.training import Training
from tasks.inputs import RESPONSES, read_lines
from tasks.job import Job

Answers = Sequence[tuple[Sequence[Message], str, bool]]
"""The answers of one row that are learnt together: prompt, text, and whether it is finished (an unfinished one is
given no end)."""

Tokenised = list[tuple[list[int], list[int]]]
"""`(prompt tokens, answer tokens)` of each answer of a row."""


def training_rows(
    job: Job,
    model: Any,
    tokenizer: Any,
    rows: Sequence[Answers],
    *,
    slot: str = "data",
    one_prompt: bool = False,
    classified: bool = False,
) -> tuple[list[Tokenised], list[int]]:
    """What the stage trains on, and which of the rows those are; the others were dropped as too long. A `UserError` if
    they are more than the data's `max_dropped`; what a stage made has no such setting, and 1 % may go. With `one_prompt`
    the answers of a row keep one prompt, cut to leave room for the longest of them; `classified` dialogues are whole and
    finished, as a classifier reads them."""
    longest = reads(model, tokenizer, job.entry.max_length)
    kept, numbers = tokenised(
        tokenizer, rows, longest, job.entry.too_long, one_prompt=one_prompt, classified=classified
    )
    limited = longest < job.entry.max_length
    _check_dropped(
        job,
        slot,
        len(rows) - len(kept),
        len(rows),
        f"are longer than {longest} tokens{', all that the model reads' if limited else ''}",
        [] if limited else ["raise `max_length`"],
    )
    if not kept:
        raise UserError(f"{_where(job.one(slot))}: no row is left to train on")
    return kept, numbers


def check_lengths(job: Job, prompts: Sequence[Prompt], slot: str) -> None:
    """Before answers are drawn of which some would be dropped as too long. Raises a `UserError` where more prompts than may
    be dropped leave no room for an answer of `max_new_tokens`; of their answers, some may be shorter."""
    if job.entry.too_long == "truncate_left":
        return
    tokenizer, new, longest = load_tokenizer(job.start), job.entry.max_new_tokens, job.entry.max_length
    dropped = sum(len(encode_prompt(tokenizer, p.messages)) + new > longest for p in prompts)
    told = f"are longer than {longest} tokens with an answer of {new}"
    _check_dropped(job, slot, dropped, len(prompts), told, ["raise `max_length`", "lower `max_new_tokens`"])


def _check_dropped(job: Job, slot: str, dropped: int, of: int, told: str, remedies: Sequence[str]) -> None:
    data = job.one(slot)
    external = isinstance(data.entry, Data)
    allowed = data.entry.max_dropped if isinstance(data.entry, Data) else "1%"
    if too_many(dropped, of, allowed):
        every = [*remedies, "set `too_long: truncate_left`", *(["raise `max_dropped`"] if external else [])]
        raise UserError(
            f"{_where(data)}: {dropped} of {of} rows ({percent(dropped, of)}) {told}; {allowed} may be dropped; "
            f"{' or '.join(every)}"
        )


def _where(data: Artifact) -> str:
    return f"data.{data.name}" if isinstance(data.entry, Data) else data.name


def tokenised(
    tokenizer: Any,
    rows: Sequence[Answers],
    longest: int,
    too_long: str,
    *,
    one_prompt: bool = False,
    classified: bool = False,
) -> tuple[list[Tokenised], list[int]]:
    """The rows as tokens, those with an answer that is too long left out or cut, and their numbers."""
    kept, numbers = [], []

    def encode(prompt: Sequence[Message], answer: str, finished: bool) -> tuple[list[int], list[int]]:
        if classified:
            return encode_dialogue(tokenizer, prompt, answer)
        return encode_prompt(tokenizer, prompt), encode_answer(tokenizer, prompt, answer, finished=finished)

    for number, row in enumerate(rows):
        encoded = [encode(*one) for one in row]
        most = max(len(a) for _, a in encoded)
        if one_prompt and most >= longest:
            continue  # not even the longest answer fits
        if too_long == "truncate_left" or max(len(p) + len(a) for p, a in encoded) <= longest:
            if one_prompt:
                prompt, _ = cut_left(tokenizer, encoded[0][0], [0] * most, longest)
                kept.append([(prompt, list(a)) for _, a in encoded])
            else:
                kept.append([cut_left(tokenizer, p, a, longest) for p, a in encoded])
            numbers.append(number)
    return kept, numbers


def without_dropout(model: Any) -> None:
    """Turns off the modules that drop out, and the rates that layers hand to functions."""
    disable_dropout_in_model(model)
    for module in model.modules():
        for name, value in vars(module).items():
            if "drop" in name and isinstance(value, float):
                setattr(module, name, 0.0)


def without_weights(job: Job) -> LanguageModel:
    """The model that the stage goes on from as far as its settings and its tokenizer tell: which rows it can read is known
    before other models are loaded and asked."""
    config = config_of(job.start)
    return LanguageModel(SimpleNamespace(config=config), load_tokenizer(job.start), own_precision(job.start))


def load_start(job: Job) -> LanguageModel:
    """The model that the stage goes on from, in the precision it will be trained in and without dropout of its own: the
    adapters' is the person's. From here on random numbers (new adapters, dropout, the order of rows) follow from the
    stage's seed, whatever was drawn before."""
    set_seed(job.seed)
    lora = job.entry.lora
    loaded = load_language_model(
        job.start,
        precision="fp32" if lora is None else None,
        four_bits="held" if lora is not None and lora.base == "nf4" else None,
    )
    without_dropout(loaded.model)
    return loaded


def pair_answers(pairs: Sequence[Pair]) -> list[Answers]:
    """Both answers of each pair; one that was cut off is given no end."""
    return [[(p.prompt, p.chosen, p.chosen_finished), (p.prompt, p.rejected, p.rejected_finished)] for p in pairs]


def response_answers(job: Job, slot: str) -> list[Answers]:
    """The responses to each prompt of a `sample` stage. One without a token is no answer."""
    folder = job.one(slot).folder
    assert folder is not None
    rows = [
        [(tuple(row["prompt"]), r["text"], r["finished"]) for r in row["responses"] if r["text"] or r["finished"]]
        for row in read_lines(folder / RESPONSES)
    ]
    return [row for row in rows if row]


def numbered(columns: Sequence[dict[str, Any]]) -> Dataset:
    """The trainer's data set, its rows numbered for messages."""
    return Dataset.from_list([{**c, "row": i} for i, c in enumerate(columns)])


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


def layout() -> str:
    """How many processes train together and how they hold the model, as the name of a folder; empty for one alone."""
    processes = int(os.environ.get("WORLD_SIZE", "1"))
    if processes == 1:
        return ""
    split = [how for how in ("fsdp", "deepspeed") if parse_flag_from_env(f"ACCELERATE_USE_{how.upper()}")]
    return f"{split[0] if split else 'ddp'}-{processes}"


def arguments(job: Job, rows: int, precision: str, *, each: int = 1) -> dict[str, Any]:
    """Configuration fields that every trainer takes; it counts `each` sequences to a row. What is trained is fp32 (adapters,
    or all weights); with bf16 the forward pass runs under autocast, which on a processor is three times faster than
    adapters in fp32."""
    entry = job.entry
    processes = int(os.environ.get("WORLD_SIZE", "1"))
    share = entry.batch_size // processes * each
    micro = job.execution.micro(share)
    steps = math.ceil(entry.epochs * math.ceil(rows / entry.batch_size))
    cuda = torch.cuda.is_available()
    recompute = job.execution.gradient_checkpointing
    return {
        "output_dir": str(job.scratch / "checkpoints" / layout()),
        "per_device_train_batch_size": micro,
        "gradient_accumulation_steps": share // micro,
        "num_train_epochs": entry.epochs,
        "learning_rate": entry.learning_rate,
        "lr_scheduler_type": "linear",
        "warmup_steps": entry.warmup_steps,
        "weight_decay": entry.weight_decay,
        "max_grad_norm": 1.0,
        "logging_steps": max(1, steps // 50),
        "logging_first_step": True,
        "logging_nan_inf_filter": False,  # it would put a mean in the place of a loss that is none
        "save_strategy": "no",  # the clock asks for checkpoints
        "save_total_limit": 1,
        "eval_strategy": "no",
        "report_to": "none",
        "disable_tqdm": True,
        "seed": job.seed,
        "data_seed": job.seed,
        "use_cpu": not cuda,
        "ddp_backend": None if cuda or processes == 1 else "gloo",
        "ddp_find_unused_parameters": False,
        "bf16": precision == "bf16",
        "gradient_checkpointing": cuda if recompute is None else recompute,
        "dataloader_pin_memory": cuda,
    }
