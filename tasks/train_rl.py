"""The `rl` body: TRL's RLOO or GRPO on our prompts, sampler and rewards; with a calibrated, transformed reward, CTRL.

The trainers are the library's but for where samples come from: one prefill a prompt, and random numbers that belong to
(seed, prompt, optimizer step, sample).
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from itertools import cycle, islice
from typing import Any

import numpy as np
import torch
from accelerate import PartialState
from accelerate.utils import gather_object
from datasets import Dataset
from torch.utils.data import Sampler
from trl import GRPOConfig, GRPOTrainer, RLOOConfig, RLOOTrainer

from registry.dialogue_text import Message, decode_answer, encode_prompt
from registry.language_models import LanguageModel, load_language_model, own_precision
from registry.log_probs import with_log_probs
from registry.prefix_scorers import hidden_states
from registry.rewards import scorer
from registry.rows import Prompt
from specs.calibration import Calibrate
from specs.problems import UserError
from tasks.answers import ending, keys, leave_room, naming
from tasks.batch import NotFinite
from tasks.inputs import prompts_of
from tasks.job import Job, Result
from tasks.sampler import sample
from tasks.threads import use_threads
from tasks.trained_weights import save, whole
from tasks.trainer import train
from tasks.training import arguments, load_start, lora_config
from tasks.transformed import transformation


def train_rl(job: Job) -> Result:
    """Trains and writes the adapter (or all weights)."""
    use_threads(job.execution)
    entry = job.entry
    prompts = prompts_of(job, "prompts")
    base = load_start(job)
    sampling = Sampling(job, base, prompts)
    # TRL pads with it behind masks of its own, and the padding token may be one that the model does not have.
    if base.eos_ids:
        base.tokenizer.pad_token_id = base.eos_ids[0]
    lora = lora_config(entry, "CAUSAL_LM")
    # The mean of a group of n holds the sample itself, so GRPO's reward counts (n - 1) / n, and the KL must no more.
    weight = entry.beta * (1.0 if entry.algorithm == "rloo" else 1 - 1 / entry.samples)
    settings = arguments(job, len(prompts), own_precision(job.start), each=entry.samples)
    settings |= {
        "num_generations": entry.samples,
        "max_completion_length": entry.max_new_tokens,
        # Without adapters TRL would load the reference that the configuration names: another one than the start where a
        # stage came before, or another revision of it.
        "beta": 0.0 if lora is None else weight,
        "disable_dropout": True,
        "temperature": 1.0,
    }
    if entry.algorithm == "rloo":
        kind: Any = Rloo
        config: Any = RLOOConfig(**settings, normalize_advantages=False)
    else:
        kind = Grpo
        config = GRPOConfig(**settings, scale_rewards="none", loss_type="dr_grpo")
    trainer = kind(
        model=base.model,
        reward_funcs=[_reward(job, base.tokenizer)],
        args=config,
        train_dataset=Dataset.from_list([{"prompt": list(map(dict, p.messages))} for p in prompts]),
        processing_class=base.tokenizer,
        peft_config=lora,
    )
    if lora is None and entry.beta:
        trainer.beta = weight
        trainer.ref_model = with_log_probs(load_language_model(job.start, precision=base.precision).model)
    trainer.eos_token_ids = list(base.eos_ids)  # TRL knows no end of the template
    trainer.sampling = sampling
    sampling.rehearse(trainer.model, trainer.args.per_device_train_batch_size)
    curve = train(trainer, job)
    save(trainer, job)
    logged = [entry for entry in trainer.state.log_history if "reward" in entry]
    names = {"reward": "reward", "kl": "kl_per_token"}  # what TRL logs as `kl` is a mean over tokens
    ends = {"first": logged[0], "last": logged[-1]} if logged else {}
    found = {f"train/{end}_{names[k]}": float(entry[k]) for end, entry in ends.items() for k in names if k in entry}
    return Result({"prompts": float(len(prompts))} | curve | found)


def _reward(job: Job, tokenizer: Any) -> Callable[..., list[float]]:
    """The reward as TRL calls it: transformed, on the text of the sampled tokens. It stays in memory while training."""
    reward = job.one("reward")
    score = scorer(reward, batch=job.execution.rows)
    rollouts = int(reward.fields["samples"]) if isinstance(reward.entry, Calibrate) else 0
    phi = transformation(job.entry.transform, job.entry.beta, rollouts)

    def transformed(prompts: Sequence[Sequence[Message]], completion_ids: Sequence[list[int]], **_: Any) -> list[float]:
        values = score(prompts, [decode_answer(tokenizer, ids) for ids in completion_ids])
        return [float(v) for v in phi(np.array(values))]

    transformed.__name__ = "transformed" if job.entry.transform.kind != "identity" else "reward"
    return transformed


class Sampling:
    """Draws for a trainer with the sampler of this project. Raises `UserError` where a prompt leaves no room for an
    answer."""

    def __init__(self, job: Job, base: LanguageModel, prompts: Sequence[Prompt]):
        self.job, self.tokenizer, self.eos_ids = job, base.tokenizer, base.eos_ids
        self.bf16 = own_precision(job.start) == "bf16"
        encoded = self.encode([p.messages for p in prompts])
        leave_room(job.start.name, base.model, encoded, job.entry.max_new_tokens)
        self.longest = max(range(len(encoded)), key=lambda i: len(encoded[i]))
        self.prompts, self.ids = prompts, encoded[self.longest]

    @torch.no_grad()
    def rehearse(self, model: Any, rows: int) -> None:
        """One forward pass before the first step, of `rows` answers to the longest prompt that are as long as any may be.
        Raises `UserError` where it gives no numbers."""
        longest = self.ids + self.ids[-1:] * self.job.entry.max_new_tokens
        ids = torch.tensor([longest] * rows, device=model.get_input_embeddings().weight.device)
        with self.as_in_training(model), naming(self.job.start.name, self.prompts):
            if not hidden_states(model, input_ids=ids).isfinite().all():
                raise NotFinite(self.longest, str(self.longest))

    def encode(self, prompts: Sequence[Sequence[Message]]) -> list[list[int]]:
        return [
            encode_prompt(self.tokenizer, [{"role": m["role"], "content": m["content"]} for m in p]) for p in prompts
        ]

    def as_in_training(self, model: Any) -> torch.autocast:
        """The precision in which the trainer runs the model."""
        device = model.get_input_embeddings().weight.device
        return torch.autocast(device.type, torch.bfloat16, enabled=self.bf16)

    def draw(
        self, model: Any, prompts: Sequence[Prompt], samples: int, stream: str, step: int
    ) -> list[list[list[int]]]:
        """`[prompt][sample]`, the tokens of each, after `step` optimizer steps. All processes draw at once, each for prompts
        of its own; one that stands in several is drawn for anew in each."""
        ids = gather_object([[prompt.id for prompt in prompts]])
        before = [one for share in ids[: PartialState().process_index] for one in share]
        try:
            with self.as_in_training(model):
                drawn = sample(
                    model,
                    self.encode([p.messages for p in prompts]),
                    keys=keys(prompts, f"{stream} step {step}", before),
                    samples=samples,
                    seed=self.job.seed,
                    max_new_tokens=self.job.entry.max_new_tokens,
                    eos_ids=self.eos_ids,
                    rows=self.job.execution.rows,
                )
        except NotFinite as error:
            with naming(self.job.start.name, prompts):
                if step == 0:
                    raise
            raise UserError(
                f"training diverged: the logits to {ending(prompts[error.prompt])} are no numbers at step {step + 1}; lower "
                "`learning_rate`, or leave that prompt out"
            ) from error
        return [[list(s.ids) for s in row] for row in drawn]


class _Sampled:
    """Mixed in before TRL's online trainers."""

    sampling: Sampling

    def _tokenize_prompts(self, prompts: Any) -> Any:
        self._asked = [Prompt(tuple({"role": m["role"], "content": m["content"]} for m in p)) for p in prompts]
        return self.sampling.encode(prompts), None, {}

    def _draw(self, repeats: int) -> list[list[int]]:
        """One completion for each prompt of the batch, in which each stands `repeats` times in a row."""
        trainer: Any = self
        model = trainer.accelerator.unwrap_model(trainer.model_wrapped)
        distinct = self._asked[::repeats]
        with whole(model):
            drawn = self.sampling.draw(model, distinct, repeats, "rl", trainer.state.global_step)
        return [ids for row in drawn for ids in row]

    def _get_train_sampler(self, dataset: Any = None) -> Passes:
        trainer: Any = self
        times, each = trainer.args.steps_per_generation, trainer.num_generations
        size = trainer.args.generation_batch_size // each
        return Passes(len(trainer.train_dataset), size, each, times, trainer.args.seed)


class Passes(Sampler[int]):
    """Passes over the prompts as TRL reads them: each prompt `each` times in a row, a step's batch `times` over.

    TRL's own sampler leaves out what is less than a batch, and cannot go on within a later pass. Here the last batch of
    a pass is filled up from the pass's beginning, and the order of a pass follows from the seed and its number.
    """

    def __init__(self, prompts: int, size: int, each: int, times: int, seed: int):
        self.prompts, self.size, self.each, self.times, self.seed = prompts, size, each, times, seed
        self.epoch = 0

    def set_epoch(self, epoch: int) -> None:
        """Which pass is next."""
        self.epoch = epoch

    def __len__(self) -> int:
        return -(-self.prompts // self.size) * self.size * self.each * self.times

    def __iter__(self) -> Iterator[int]:
        order = cycle(np.random.default_rng([self.seed, self.epoch]).permutation(self.prompts).tolist())
        for _ in range(-(-self.prompts // self.size)):
            batch = list(islice(order, self.size))
            yield from (prompt for _ in range(self.times) for prompt in batch for _ in range(self.each))


class Rloo(_Sampled, RLOOTrainer):
    """TRL's trainer, sampling as everything here does."""

    def _generate_single_turn(self, prompt_ids: Any, images: Any, multimodal_fields: Any) -> list[list[int]]:
        return self._draw(self.num_generations)


class Grpo(_Sampled, GRPOTrainer):
    """TRL's trainer, sampling as everything here does."""

    def _generate_single_turn(
        self, prompt_ids: Any, images: Any, multimodal_fields: Any, num_generations: int, has_tool_images: bool = False
    ) -> tuple[list[list[int]], None]:
        return self._draw(num_generations), None
