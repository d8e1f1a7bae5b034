"""The `bond` body: J-BOND, online distillation of best-of-two of an anchor that follows the policy slowly.

Before each optimizer step the step's prompts are answered, once by the policy and twice by the anchor. What the loss
needs of that is a row of two candidates: the policy's sample and the better one of the anchor.
"""

from __future__ import annotations

import copy
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from accelerate.utils import gather_object
from peft import get_peft_model
from safetensors.torch import load_file, save_file
from torch import Tensor
from transformers import TrainerCallback, TrainingArguments
from trl.trainer.utils import use_adapter

from registry.dialogue_text import decode_answer
from registry.language_models import own_precision
from registry.log_probs import score_rows, with_log_probs
from registry.methods import bond
from registry.rewards import scorer
from registry.rows import Prompt
from tasks.candidates import CandidateTrainer, collate
from tasks.inputs import prompts_of
from tasks.job import Job, Result
from tasks.threads import use_threads
from tasks.train_rl import Sampling
from tasks.trained_weights import save
from tasks.trainer import last_checkpoint, train
from tasks.training import arguments, load_start, lora_config, numbered

ANCHOR = "anchor"


def train_bond(job: Job) -> Result:
    """Trains and writes the adapter (or all weights)."""
    use_threads(job.execution)
    entry = job.entry
    prompts = prompts_of(job, "prompts")
    base = load_start(job)
    sampling = Sampling(job, base, prompts)
    # Copied before the model learns to give log-probabilities: a later copy would call the policy's own forward pass.
    second = copy.deepcopy(base.model) if entry.lora is None else None
    model = with_log_probs(base.model)
    lora = lora_config(entry, "CAUSAL_LM")
    if lora is not None:
        model = get_peft_model(model, lora)
        model.add_adapter(ANCHOR, lora)
    settings = arguments(job, len(prompts), own_precision(job.start))

    def loss(log_probs: Tensor, _: Tensor, given: Mapping[str, Tensor]) -> tuple[Tensor, Mapping[str, Tensor]]:
        own, best = log_probs.unbind(1)
        losses = bond.loss(own, given["anchor"], best, given["advantage"], mix=entry.mix, kl_weight=entry.kl_weight)
        return losses, {
            "kl_to_anchor": own - given["anchor"],
            "reward": given["reward"],
            "below_both": given["below_both"],
        }

    trainer = BondTrainer(
        loss=loss,
        model=model,
        args=TrainingArguments(**settings, remove_unused_columns=False),
        train_dataset=numbered([{} for _ in prompts]),
        data_collator=lambda examples: {"row": torch.tensor([e["row"] for e in examples])},
    )
    anchor = Anchor(trainer.model, second, entry.anchor_rate)
    trainer.duel = Duel(job, prompts, sampling, anchor)
    trainer.add_callback(anchor)
    if resumed := last_checkpoint(job.scratch / "checkpoints"):
        anchor.load(resumed)
    sampling.rehearse(trainer.model, 2 * trainer.args.per_device_train_batch_size)
    curve = train(trainer, job)
    if lora is not None:
        trainer.model.delete_adapter(ANCHOR)
    save(trainer, job)
    return Result({"prompts": float(len(prompts))} | curve)


class Anchor(TrainerCallback):
    """The policy's slow follower: an adapter beside the policy's on one base, or a second model where all weights are
    trained."""

    def __init__(self, policy: Any, second: Any, rate: float):
        """`second` is the other model, None where the policy has adapters."""
        self.policy, self.rate = policy, rate
        self.other = None if second is None else with_log_probs(second).requires_grad_(False).eval()
        self.trained, self.following = self._parameters()
        bond.moving_average(self.following.values(), self.trained.values(), 1.0)

    def _parameters(self) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
        own = dict(self.policy.named_parameters())
        if self.other is not None:
            return own, dict(self.other.named_parameters())
        trained = {name: p for name, p in own.items() if ".default." in name}
        return trained, {name: own[name.replace(".default.", f".{ANCHOR}.")] for name in trained}

    @contextmanager
    def in_place(self) -> Iterator[Any]:
        """The anchor as a model to call."""
        if self.other is not None:
            yield self.other
        else:
            with use_adapter(self.policy, ANCHOR):
                yield self.policy

    def on_step_end(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        bond.moving_average(self.following.values(), self.trained.values(), self.rate)

    def save(self, checkpoint: Path) -> None:
        save_file({k: v.contiguous() for k, v in self.following.items()}, checkpoint / f"{ANCHOR}.safetensors")

    def load(self, checkpoint: Path) -> None:
        saved = load_file(checkpoint / f"{ANCHOR}.safetensors")
        for name, parameter in self.following.items():
            parameter.data.copy_(saved[name])


class Duel:
    """A step's samples and who won, as rows of candidates."""

    def __init__(self, job: Job, prompts: Sequence[Prompt], sampling: Sampling, anchor: Anchor):
        self.job, self.prompts, self.sampling, self.anchor = job, prompts, sampling, anchor
        self.encoded = sampling.encode([p.messages for p in prompts])
        self.score = scorer(job.one("reward"), batch=job.execution.rows)

    def fought(self, policy: Any, batches: Sequence[Sequence[int]], step: int) -> list[dict[str, Tensor]]:
        """One batch of candidates for each batch of prompt numbers; a negative one, -1 - the number, weighs nothing."""
        counts = [row >= 0 for batch in batches for row in batch]
        rows = [max(row, ~row) for batch in batches for row in batch]
        prompts = [self.prompts[row] for row in rows]
        own = self.sampling.draw(policy, prompts, 1, "bond", step)
        with self.anchor.in_place() as anchor:
            theirs = self.sampling.draw(anchor, prompts, 2, "bond anchor", step)
        drawn = [[*a, *b] for a, b in zip(own, theirs, strict=True)]
        texts = [decode_answer(self.sampling.tokenizer, ids) for row in drawn for ids in row]
        flat = self.score([p.messages for p in prompts for _ in range(3)], texts)
        rewards = torch.tensor(flat, dtype=torch.float64).view(-1, 3)
        pairs = [(self.encoded[row], ids[:1]) for row, ids in zip(rows, drawn, strict=True)]
        with self.anchor.in_place() as anchor:
            precision = own_precision(self.job.start)
            scored = score_rows(anchor, pairs, batch=self.job.execution.rows, precision=precision)
        below = bond.backward_reward(rewards[:, 0], rewards[:, 1:])
        # Over the rows of all processes: a step is one step, however many share it.
        every = gather_object([value for value, there in zip(below.tolist(), counts, strict=True) if there])
        advantages = below - bond.leave_one_out(below, below.new_tensor(every))
        best = rewards[:, 1:].argmax(1)  # the first on a tie
        examples = [
            {
                "prompt": self.encoded[row],
                "answers": [drawn[i][0], drawn[i][1 + int(best[i])]],
                "anchor": scored[i][0],
                "advantage": float(advantages[i]),
                "reward": float(rewards[i, 0]),
                "below_both": float(below[i] < 0),
            }
            for i, row in enumerate(rows)
        ]
        remaining = iter(examples)
        return [collate([next(remaining) for _ in batch]) | {"row": torch.tensor(list(batch))} for batch in batches]


class BondTrainer(CandidateTrainer):
    """Draws the candidates of each optimizer step when the step begins."""

    duel: Duel

    def get_batch_samples(self, epoch_iterator: Any, num_batches: int, device: Any) -> Any:
        batches, items = super().get_batch_samples(epoch_iterator, num_batches, device)
        numbers = [batch["row"].tolist() for batch in batches]
        return self.duel.fought(self.model, numbers, self.state.global_step) if numbers else [], items

    def _save(self, output_dir: Any = None, state_dict: Any = None) -> None:
        super()._save(output_dir, state_dict)
        # Not when the checkpoint is said to be saved: it counts as whole before.
        if self.is_world_process_zero():
            self.duel.anchor.save(Path(output_dir or self.args.output_dir))

    def _blame(self, rows: Sequence[int], value: float) -> str:
        return f"training diverged: {self._met(value)}; lower `learning_rate` or `kl_weight`"
