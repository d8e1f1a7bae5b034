"""The `sft` body: supervised fine-tuning on the chosen answers with TRL's SFTTrainer."""

from __future__ import annotations

from collections.abc import Sequence

from trl import SFTConfig, SFTTrainer

from registry.language_models import LanguageModel, own_precision
from tasks.inputs import pairs_of
from tasks.job import Job, Result
from tasks.threads import use_threads
from tasks.trained_weights import save
from tasks.trainer import Careful, train
from tasks.training import Tokenised, arguments, load_start, lora_config, numbered, pad_apart, training_rows


def train_sft(job: Job) -> Result:
    """Trains and writes the adapter (or all weights)."""
    use_threads(job.execution)
    base = load_start(job)
    answers = [[(p.prompt, p.chosen, p.chosen_finished)] for p in pairs_of(job, "data")]
    rows, kept = training_rows(job, base.model, base.tokenizer, answers)
    return Result(
        {"rows": float(len(rows)), "dropped_too_long": float(len(answers) - len(kept))} | fit(job, base, rows)
    )


def fit(job: Job, base: LanguageModel, rows: Sequence[Tokenised]) -> dict[str, float]:
    """Fine-tunes on the answers, one a row, saves, and returns the curve's ends."""
    columns = [{"input_ids": prompt + answer, "labels": [-100] * len(prompt) + answer} for ((prompt, answer),) in rows]
    pad_apart(base.tokenizer, base.model, [c["input_ids"] for c in columns])
    lora = lora_config(job.entry, "CAUSAL_LM")
    trainer = CarefulSFT(
        model=base.model,
        args=SFTConfig(**arguments(job, len(columns), own_precision(job.start)), max_length=None),
        train_dataset=numbered(columns),
        processing_class=base.tokenizer,
        peft_config=lora,
    )
    curve = train(trainer, job, rows, base.tokenizer)
    save(trainer, job)
    return curve


class CarefulSFT(Careful, SFTTrainer):
    """TRL's trainer, whose loss is already a mean over the tokens of the whole optimizer step."""

    mean_of_rows = False
