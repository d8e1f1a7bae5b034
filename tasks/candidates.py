"""Training on the log-probabilities of a prompt's answers: one row is a prompt with all of them, the prompt read once.

A method is a plain function of those log-probabilities (`registry/methods/`); the trainer around it is the library's.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from accelerate.utils import gather_object
from peft import get_peft_model
from torch import Tensor
from transformers import Trainer, TrainingArguments

from registry.language_models import LanguageModel, own_precision
from registry.log_probs import Row, answer_log_probs, with_log_probs
from registry.methods.shared_prompt import Packed, lengths, pack
from registry.reward_models import reads
from registry.rows import Pair
from specs.problems import UserError
from tasks.inputs import pairs_of
from tasks.job import Job
from tasks.trained_weights import save
from tasks.trainer import Careful, train
from tasks.training import Tokenised, arguments, lora_config, numbered, pair_answers, tokenised

Loss = Callable[[Tensor, Tensor, Mapping[str, Tensor]], tuple[Tensor, Mapping[str, Tensor]]]
"""`loss(log_probs, lengths, given)` to the loss of each row and what is to be logged of it (means over rows).
`log_probs` and `lengths` are [rows, answers]; `given` holds what the rows brought along, by name."""


def train_on_candidates(
    job: Job, base: LanguageModel, rows: Sequence[Tokenised], given: Mapping[str, Sequence[Any]], loss: Loss
) -> tuple[dict[str, float], Any]:
    """Trains on rows of answers to one prompt each, saves, and returns the curve's ends and the trained model. `given`
    are further columns: a number or a list of numbers for each row."""
    model = with_log_probs(base.model)
    lora = lora_config(job.entry, "CAUSAL_LM")
    if lora is not None:
        model = get_peft_model(model, lora)
    columns = [
        {"prompt": row[0][0], "answers": [answer for _, answer in row], **{k: v[i] for k, v in given.items()}}
        for i, row in enumerate(rows)
    ]
    settings = arguments(job, len(rows), own_precision(job.start))
    trainer = CandidateTrainer(
        loss=loss,
        model=model,
        args=TrainingArguments(**settings, remove_unused_columns=False),
        train_dataset=numbered(columns),
        data_collator=collate,
    )
    curve = train(trainer, job, rows, base.tokenizer)
    save(trainer, job)
    return curve, trainer.model.eval()


def pairs_with_answers(job: Job, slot: str) -> list[Pair]:
    """The pairs of a slot both of whose answers have a token; one that was cut off may be empty."""
    pairs = pairs_of(job, slot)
    kept = [p for p in pairs if (p.chosen or p.chosen_finished) and (p.rejected or p.rejected_finished)]
    if len(kept) < len(pairs):
        job.log.note(f"{job.one(slot).name}: {len(pairs) - len(kept)} of {len(pairs)} pairs have an empty answer")
    return kept


def held_out(job: Job, base: LanguageModel, pairs: Sequence[Pair]) -> tuple[list[Row], list[Pair]]:
    """Pairs as rows to score, cut to what the model reads, without those that do not fit."""
    longest = reads(base.model, base.tokenizer, job.entry.max_length)
    rows, kept = tokenised(base.tokenizer, pair_answers(pairs), longest, "truncate_left", one_prompt=True)
    if pairs and not rows:
        name = job.one("test").name
        raise UserError(f"{name}: no pair is left to test on: all have answers of {longest} tokens or more")
    return [(row[0][0], [answer for _, answer in row]) for row in rows], [pairs[i] for i in kept]


def collate(examples: Sequence[Mapping[str, Any]]) -> dict[str, Tensor]:
    """Rows as tensors: what `pack` makes, the lengths of the answers, and the further columns. Rows with fewer answers are
    filled up with NaN, which nothing may read."""
    rows = [(e["prompt"], e["answers"]) for e in examples]
    most = max(len(answers) for _, answers in rows)
    batch: dict[str, Tensor] = dict(pack(rows)._asdict()) | {"lengths": lengths(rows)}
    for key in examples[0].keys() - {"prompt", "answers"}:
        values = [e[key] for e in examples]
        batch[key] = pad_columns(values, most) if isinstance(values[0], list) else torch.tensor(values)
    return batch


def pad_columns(values: Sequence[Sequence[float]], width: int) -> Tensor:
    """[rows, width] in fp32, filled up with NaN."""
    return torch.tensor([[*v, *[float("nan")] * (width - len(v))] for v in values], dtype=torch.float32)


class _OfCandidates(Trainer):
    loss_is_scaled_for_ga = False  # a batch has labels, by whose number the library would think it divided

    def __init__(self, *, loss: Loss, **options: Any):
        super().__init__(**options)
        self.loss = loss
        self.measured: dict[str, list[float]] = {}
        self.counts: list[bool] = []

    def compute_loss(self, model: Any, inputs: dict[str, Tensor], *_: Any, **__: Any) -> Tensor:
        packed = Packed(*(inputs.pop(name) for name in Packed._fields))
        sizes = inputs.pop("lengths")
        log_probs = answer_log_probs(model, packed, sizes.shape[1])
        losses, measured = self.loss(log_probs, sizes, inputs)
        if model.training:
            for name, values in measured.items():
                counted = zip(values.detach().float().tolist(), self.counts, strict=True)
                self.measured.setdefault(name, []).extend(value for value, counts in counted if counts)
        return losses.mean()

    def log(self, logs: dict[str, float], start_time: float | None = None) -> None:
        if "loss" in logs:
            shares = gather_object([self.measured])
            every = {name: [value for share in shares for value in share[name]] for name in self.measured}
            logs |= {name: sum(values) / len(values) for name, values in every.items() if values}
            self.measured.clear()
        super().log(logs, start_time)


class Packing(Careful):
    """Mixed in before a trainer's class whose rows are packed."""

    @staticmethod
    def tokens_of(row: Tokenised) -> int:
        """The answers of a row stand behind one prompt."""
        return len(row[0][0]) + sum(len(answer) for _, answer in row)


class CandidateTrainer(Packing, _OfCandidates):
    """The library's trainer with a loss on the log-probabilities of the rows' answers."""

    def compute_loss(self, model: Any, inputs: Any, **options: Any) -> Any:
        self.counts = (inputs["row"] >= 0).tolist()
        return super().compute_loss(model, inputs, **options)
