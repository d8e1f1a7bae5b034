"""The `sft` body: supervised fine-tuning on the chosen answers with TRL's SFTTrainer."""

from __future__ import annotations

from datasets import Dataset
from transformers import set_seed
from trl import SFTConfig, SFTTrainer

from registry.language_models import ADAPTER, WEIGHTS, load_language_model, own_precision
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


def train_sft(job: Job) -> Result:
    """Trains and writes the adapter (or all weights)."""
    use_threads(job.execution)
    set_seed(job.seed)
    full = job.entry.lora is None
    base = load_language_model(job.one("from"), precision="fp32" if full else None)
    answers = [[(p.prompt, p.chosen, p.chosen_finished)] for p in pairs_of(job, "data")]
    rows, dropped = training_rows(job, base.model, base.tokenizer, answers)
    columns = [{"input_ids": prompt + answer, "labels": [-100] * len(prompt) + answer} for ((prompt, answer),) in rows]
    pad_apart(base.tokenizer, base.model, [c["input_ids"] for c in columns])
    trainer = SFTTrainer(
        model=base.model,
        args=SFTConfig(**arguments(job, job.out / "scratch", len(columns), own_precision(job.one("from")))),
        train_dataset=Dataset.from_list(columns),
        processing_class=base.tokenizer,
        peft_config=lora_config(job.entry, "CAUSAL_LM"),
        callbacks=[Report(job.log)],
    )
    trainer.train()
    trainer.model.save_pretrained(job.out / (WEIGHTS if full else ADAPTER), safe_serialization=True)
    metrics = {"rows": float(len(columns)), "dropped_too_long": float(dropped)}
    return Result(metrics | history(trainer, job.out))
