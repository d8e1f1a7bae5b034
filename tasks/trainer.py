"""What every training stage adds to the library's trainer.

Whatever the micro-batch, each row of a step weighs the same, or in `sft` each token; before the first step the stage
saves once and computes one batch, so that a full disk or an unfit row is known at once; a loss that is no number names
its rows; checkpoints come by the clock, and a stage whose process died goes on from its last whole one, to the same
weights.
"""

from __future__ import annotations

import json
import math
import shutil
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from accelerate.utils import gather_object
from torch import Tensor
from transformers import TrainerCallback
from transformers.trainer import TRAINER_STATE_NAME

from registry.log_probs import set_head
from registry.methods.shared_prompt import IGNORED
from specs.base import seconds
from specs.problems import UserError
from tasks.inputs import TRAINING, write_lines
from tasks.job import Job, Log
from tasks.training import Tokenised, layout

if TYPE_CHECKING:
    from transformers import Trainer as MixedInto
else:
    MixedInto = object


class Careful(MixedInto):
    """Mixed in before a trainer's class. The data set's column `row` numbers the rows, for messages."""

    mean_of_rows = True
    """Whether the trainer's loss is a mean over the rows of a micro-batch (and not already over the whole step)."""
    name_row: Callable[[int], str]
    """A row as the person would recognise it."""
    _mean_size = 0.0
    _unequal = False
    _signature_columns: list[str] | None

    @staticmethod
    def tokens_of(row: Tokenised) -> int:
        """What a row takes: each of its answers stands behind the prompt in a sequence of its own."""
        return max(len(prompt) + len(answer) for prompt, answer in row)

    def _set_signature_columns_if_needed(self) -> None:
        super()._set_signature_columns_if_needed()
        columns = self._signature_columns or []
        if "row" not in columns:
            self._signature_columns = [*columns, "row"]
            self.data_collator: Any = _Numbered(self.data_collator)

    def get_batch_samples(self, epoch_iterator: Any, num_batches: int, device: Any) -> Any:
        batches, items = super().get_batch_samples(epoch_iterator, num_batches, device)
        at_the_end = bool(batches) and self.accelerator.gradient_state.end_of_dataloader
        self._unequal = at_the_end and self.accelerator.num_processes > 1
        if self._unequal:
            batches[-1] = self._without_repeats(batches[-1])
            items = self._get_num_items_in_batch(batches, device)
        sizes = torch.tensor([float(sum(int((b["row"] >= 0).sum()) for b in batches)), len(batches)], device=device)
        rows, count = self.accelerator.reduce(sizes, "sum").tolist()
        self._mean_size = rows / max(count, 1)
        return batches, items

    def _without_repeats(self, batch: Any) -> Any:
        """The last batch of a pass as one process would have it. With several, the data loader repeats rows behind the
        last one so that all have as many. A process left without a row keeps one, whose number says that it weighs
        nothing: -1 - its number."""
        numbers = batch["row"].tolist()
        left = len(self.train_dataset) % (len(numbers) * self.accelerator.num_processes)
        own = numbers[: max(0, left - len(numbers) * self.accelerator.process_index)]
        if not left or own == numbers:
            return batch
        made = self._prepare_inputs(self.data_collator([self.train_dataset[row] for row in own or numbers[:1]]))
        if not own:
            made["row"] = ~made["row"]
            if not self.mean_of_rows:
                made["labels"] = torch.full_like(made["labels"], IGNORED)
        return made

    def compute_loss(self, model: Any, inputs: Any, **options: Any) -> Any:
        rows = inputs.pop("row")
        with _gathering(self.accelerator, _unequal_parts) if self._unequal else nullcontext():
            loss = super().compute_loss(model, inputs, **options)
        if not math.isfinite(float(loss.detach())):
            raise UserError(self._blame(torch.maximum(rows, ~rows).tolist(), float(loss.detach())))
        real = int((rows >= 0).sum())
        return loss * (real / self._mean_size) if self.mean_of_rows and self._mean_size else loss

    def _blame(self, rows: Sequence[int], value: float) -> str:
        if self.is_fsdp_enabled:  # asking the model again would wait for the other processes' parts of it
            return (
                f"{self._met(value)} because of one of {self._named(rows)}; mend or remove it, or lower `learning_rate`"
            )
        with _gathering(self.accelerator, lambda own: own):  # the other processes may have nothing to blame
            return self._told(rows, value)

    def _met(self, value: float) -> str:
        return f"the loss is {value} at step {self.state.global_step + 1}"

    def _named(self, rows: Sequence[int]) -> str:
        return ", ".join(self.name_row(row) for row in rows)

    def _told(self, rows: Sequence[int], value: float) -> str:
        others = [row for row in range(len(self.train_dataset)) if row not in rows][:5]
        spoilt = sum(not math.isfinite(loss_of(self, [row])) for row in others)
        if self.state.global_step and spoilt >= len(others) / 2:
            return f"training diverged: {self._met(value)}; lower `learning_rate`"
        bad = [row for row in rows if not math.isfinite(loss_of(self, [row]))]
        return f"{self._met(value)} because of {self._named(bad or rows)}; mend or remove it"


def _unequal_parts(own: Tensor) -> Tensor:
    """What processes with different numbers of rows log."""
    return torch.cat(gather_object([torch.atleast_1d(own.detach()).cpu()])).to(own.device)


@contextmanager
def _gathering(accelerator: Any, gather: Callable[[Tensor], Tensor]) -> Iterator[None]:
    """Losses gather what they log by `gather`."""
    accelerator.gather = gather
    try:
        yield
    finally:
        del accelerator.gather  # the method again


class _Numbered:
    """A collator that keeps the numbers of the rows beside the batch it makes."""

    def __init__(self, collate: Callable[[list[dict[str, Any]]], dict[str, Any]]):
        self.collate = collate

    def __call__(self, examples: list[dict[str, Any]]) -> dict[str, Any]:
        numbers = torch.tensor([example["row"] for example in examples])
        rest = [{key: value for key, value in example.items() if key != "row"} for example in examples]
        return {**self.collate(rest), "row": numbers}


@torch.no_grad()
def loss_of(trainer: Any, rows: Sequence[int]) -> float:
    """The loss of some rows of the training data as one batch, without dropout. Leaves the random state alone."""
    was_training = trainer.model.training
    trainer.model.eval()
    inputs = trainer._prepare_inputs(trainer.data_collator([trainer.train_dataset[row] for row in rows]))
    inputs.pop("row")
    with trainer.compute_loss_context_manager():
        loss = super(Careful, trainer).compute_loss(trainer.model, inputs)
    trainer.model.train(was_training)
    return float(loss)


def train(trainer: Any, job: Job, rows: Sequence[Tokenised] = (), tokenizer: Any = None) -> dict[str, float]:
    """Trains on `rows`, which the trainer's data set holds in this order, to the end; from the last checkpoint where
    there is one. A trainer that draws its own data has no rows to try. Writes the curve; returns its first and last
    logged loss."""
    set_head()
    folder = job.scratch / "checkpoints"
    if rows:
        trainer._set_signature_columns_if_needed()
        trainer.name_row = lambda row: f"row {row + 1} ({_ending(tokenizer, rows[row])!r})"
    report = Report(job.log)
    trainer.add_callback(report)
    trainer.add_callback(CheckpointByClock(seconds(job.execution.checkpoint_every)))
    last = last_checkpoint(folder)
    if last is None:
        if any(map(_is_whole, folder.rglob("checkpoint-*"))):
            job.log.note("starting over: the checkpoint is of other `processes`, or of another `sharding`")
        size = trainer.args.per_device_train_batch_size
        rehearse(trainer, sorted(range(len(rows)), key=lambda i: -trainer.tokens_of(rows[i]))[:size])
    else:
        job.log.note(f"going on from the checkpoint after step {last.name.rpartition('-')[2]}")
        for entry in json.loads((last / TRAINER_STATE_NAME).read_bytes())["log_history"]:
            report.send(entry["step"], entry)
    trainer.train(resume_from_checkpoint=None if last is None else str(last))
    return _history(trainer, job.out)


def _ending(tokenizer: Any, row: Tokenised) -> str:
    return str(tokenizer.decode(row[0][0]))[-60:]


def rehearse(trainer: Any, rows: Sequence[int]) -> None:
    """One save and one batch before the first step."""
    if trainer.args.should_save:  # of several processes one
        trial = Path(trainer.args.output_dir) / "rehearsal"
        try:
            trainer._save(str(trial))  # as a whole: nothing is split among processes yet
        finally:
            shutil.rmtree(trial, ignore_errors=True)
    value = loss_of(trainer, rows) if rows else 0.0
    if not math.isfinite(value):
        raise UserError(trainer._blame(rows, value))


def last_checkpoint(folder: Path) -> Path | None:
    """The newest whole checkpoint among those in `folder` that this layout of processes can read."""
    found = filter(_is_whole, (folder / layout()).glob("checkpoint-*"))
    return max(found, key=lambda p: int(p.name.rpartition("-")[2]), default=None)


def _is_whole(checkpoint: Path) -> bool:
    """Its state is what the trainer writes last, and of a power cut may hold nothing."""
    try:
        json.loads((checkpoint / TRAINER_STATE_NAME).read_bytes())
    except (FileNotFoundError, ValueError):
        return False
    return True


class CheckpointByClock(TrainerCallback):
    """Asks for a checkpoint when enough time has gone by since the last."""

    def __init__(self, every: int):
        self.every = every
        self.last = time.monotonic()

    def on_step_end(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        due = torch.tensor(float(time.monotonic() - self.last > self.every), device=args.device)
        if args.world_size > 1:
            torch.distributed.broadcast(due, 0)  # one clock for all processes
        if due and state.global_step < state.max_steps:
            control.should_save = True

    def on_save(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        self.last = time.monotonic()


class Report(TrainerCallback):
    """Sends the trainer's logs and its progress to the stage's log."""

    def __init__(self, log: Log):
        self.log = log

    def on_log(self, args: Any, state: Any, control: Any, logs: Any = None, **_: Any) -> None:
        self.send(state.global_step, logs or {})

    def send(self, step: int, logs: Mapping[str, Any]) -> None:
        values = {f"train/{k}": float(v) for k, v in logs.items() if isinstance(v, (int, float))}
        lost = [name for name, value in values.items() if not math.isfinite(value)]
        if lost:
            raise UserError(f"training diverged: {lost[0]} is {values[lost[0]]} at step {step}; lower `learning_rate`")
        if "train/loss" in values:
            self.log.metrics(step, values)

    def on_step_end(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        self.log.progress(state.global_step, state.max_steps, "steps")


def _history(trainer: Any, out: Path) -> dict[str, float]:
    curve = [entry for entry in trainer.state.log_history if "loss" in entry]
    write_lines(out / TRAINING, [{k: v for k, v in e.items() if isinstance(v, (int, float))} for e in curve])
    losses = [entry["loss"] for entry in curve]
    if not losses:
        return {}
    return {"train/first_loss": float(losses[0]), "train/last_loss": float(losses[-1])}
