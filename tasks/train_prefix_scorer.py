"""The `prefix_scorer` body: CD-FUDGE and CD-Q on sampled responses, or preferences between prefixes."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from contextlib import nullcontext
from statistics import fmean, pstdev
from typing import Any

import torch
from peft import get_peft_model
from torch import Tensor, nn
from transformers import Trainer, TrainingArguments

from registry.artifacts import Artifact
from registry.language_models import LanguageModel, load_language_model, load_tokenizer, own_precision
from registry.log_probs import attention_mask, with_log_probs
from registry.methods.prefix_values import (
    equal_length_prefixes,
    expected_value,
    fudge_loss,
    prefix_preference_loss,
    q_loss,
    q_targets,
)
from registry.methods.shared_prompt import Packed, by_token, lengths, pack
from registry.prefix_scorers import PrefixHead, hidden_states, save_head
from registry.rows import Prompt
from specs.prefix_scorer import PreferencePrefixScorer, QScorer
from specs.problems import UserError
from tasks.candidates import Packing, pad_columns
from tasks.inputs import pairs_of
from tasks.job import Job, Result
from tasks.own_samples import scored_once
from tasks.rules import rule_of
from tasks.threads import use_threads
from tasks.trained_weights import gathered, save_weights
from tasks.trainer import train
from tasks.training import (
    Tokenised,
    arguments,
    load_start,
    lora_config,
    numbered,
    pair_answers,
    response_answers,
    training_rows,
    without_weights,
)


def train_prefix_scorer(job: Job) -> Result:
    """Trains and writes the body's adapter (or all its weights) and the head."""
    use_threads(job.execution)
    entry = job.entry
    metrics: dict[str, float] = {}
    by_pairs = isinstance(entry, PreferencePrefixScorer)
    slot = "data" if by_pairs else "responses"
    answers = pair_answers(pairs_of(job, slot)) if by_pairs else response_answers(job, slot)
    start = without_weights(job)
    rows, kept = training_rows(job, start.model, start.tokenizer, answers, slot=slot, one_prompt=True)
    rewards: list[list[float]] = [[] for _ in kept]
    if not by_pairs:
        _check_tokens(job, start)
        metrics["on_policy"] = float(_on_policy(job))
        prompts = [Prompt(tuple(answers[i][0][0])) for i in kept]
        texts = [[text for _, text, _ in answers[i]] for i in kept]
        rewards = scored_once(job, job.one("reward"), prompts, texts)
    base = load_start(job)
    with_log_probs(base.model)  # none are asked of it, but it must be one that reads answers side by side
    every = [r for row in rewards for r in row]
    vocabulary = isinstance(entry, QScorer) or entry.head == "vocabulary"
    width = base.model.config.get_text_config().hidden_size
    size = base.model.get_output_embeddings().weight.shape[0] if vocabulary else 0
    deviation = pstdev(every) or 1.0 if every else 1.0
    head = PrefixHead(width, size, fmean(every) if every else 0.0, deviation)
    lora = lora_config(entry, "CAUSAL_LM")
    body = base.model if lora is None else get_peft_model(base.model, lora)
    reference = _reference(job) if isinstance(entry, QScorer) else None
    settings = arguments(job, len(rows), own_precision(job.start))
    settings["ddp_find_unused_parameters"] = lora is None  # no token is predicted: an output head apart has no gradient
    trainer = PrefixTrainer(
        model=Scorer(body, head, reference),
        args=TrainingArguments(**settings, remove_unused_columns=False),
        train_dataset=numbered(_columns(rows, rewards)),
        data_collator=lambda examples: _collate(examples, whole=not vocabulary),
    )
    trainer.loss_name = entry.loss
    metrics |= train(trainer, job, rows, base.tokenizer)
    _save(trainer, job, body, head)
    metrics |= {"rows": float(len(rows)), "answers": float(sum(map(len, rows)))}
    metrics |= {"dropped_too_long": float(len(answers) - len(kept)), "deviation": deviation}
    return Result(metrics)


def _save(trainer: Any, job: Job, body: Any, head: PrefixHead) -> None:
    state = gathered(trainer)
    if state is None:
        save_weights(body, job)
        save_head(head, job.out)
    elif state:
        apart = {
            part: {name.removeprefix(part): t for name, t in state.items() if name.startswith(part)}
            for part in ("body.", "head.")
        }
        save_weights(body, job, apart["body."])
        save_head(head, job.out, apart["head."])


def _controlled(job: Job) -> Artifact:
    """The policy that the scorer will control."""
    return (job.many("reference") or (job.start,))[0]


def _on_policy(job: Job) -> bool:
    """Whether the responses are plain samples of the policy to be controlled. For CD-FUDGE they should be: it estimates
    the value under whoever wrote them."""
    rule = rule_of(job.one("responses").one("from"))
    plain = (rule.temperature, rule.top_k, rule.top_p, rule.n, rule.guided) == (1.0, 0, 1.0, 1, None)
    same = plain and rule.model.fingerprint == _controlled(job).fingerprint
    if not same and not isinstance(job.entry, QScorer):
        job.log.note(
            f"warning: the responses are no plain samples of `{_controlled(job).name}`, which is to be controlled, so "
            "cd_fudge learns the value under another policy; sample from it, or use `loss: cd_q`"
        )
    return same


def _check_tokens(job: Job, start: LanguageModel) -> None:
    """Raises a `UserError` where CD-Q would average over the distribution of a model with other tokens."""
    controlled = _controlled(job)
    if isinstance(job.entry, QScorer) and load_tokenizer(controlled).get_vocab() != start.tokenizer.get_vocab():
        raise UserError(
            f"`{controlled.name}` and `{job.start.name}` have different tokens, so that a scorer of the one's cannot "
            "average over the other's; train it from a model with the reference's tokenizer"
        )


def _reference(job: Job) -> Any:
    """The model whose next-token distribution CD-Q averages over, where it is not the body without its adapter."""
    controlled, lora = _controlled(job), job.entry.lora
    if lora is not None and lora.base == "own" and controlled.fingerprint == job.start.fingerprint:
        return None
    return with_log_probs(load_language_model(controlled).model).requires_grad_(False)


def _columns(rows: Sequence[Tokenised], rewards: Sequence[Sequence[float]]) -> list[dict[str, Any]]:
    return [
        {"prompt": row[0][0], "answers": [answer for _, answer in row], "rewards": list(values)}
        for row, values in zip(rows, rewards, strict=True)
    ]


def _collate(examples: Sequence[Mapping[str, Any]], *, whole: bool) -> dict[str, Tensor]:
    rows = [(e["prompt"], e["answers"]) for e in examples]
    sizes = lengths(rows)
    rewards = pad_columns([e["rewards"] for e in examples], sizes.shape[1])
    return dict(pack(rows, whole=whole)._asdict()) | {"lengths": sizes, "rewards": torch.nan_to_num(rewards)}


class Scorer(nn.Module):
    """Body and head as one module, as a trainer wants it. Only what is trained is in its checkpoints."""

    def __init__(self, body: Any, head: PrefixHead, reference: Any):
        super().__init__()
        self.body, self.head = body, head
        self._reference = [reference]  # in a list, so that it is no part of the module
        self.config = body.config
        self._no_split_modules = body._no_split_modules  # what FSDP splits one by one

    def _trained(self) -> set[str]:
        return {name for name, parameter in self.named_parameters() if parameter.requires_grad}

    def state_dict(self, *args: Any, **options: Any) -> Any:
        trained = self._trained()
        return {k: v for k, v in super().state_dict(*args, **options).items() if k in trained}

    def load_state_dict(self, *args: Any, **options: Any) -> Any:
        found = super().load_state_dict(*args, **options)
        return found._replace(missing_keys=[name for name in found.missing_keys if name in self._trained()])

    def activation_checkpointing_enable(self, **options: Any) -> None:
        self.body.activation_checkpointing_enable(**options)

    def forward(self, packed: Packed, q: bool) -> tuple[Tensor, Tensor]:
        """Values [rows, L] of the tokens that positions predict, and, for CD-Q, what the reference expects after the
        token that a position reads."""
        inputs = _inputs(self.body, packed)
        hidden = hidden_states(self.body, **inputs)
        if self.head.each is None:  # a token's value is read where the token itself was
            hidden = torch.cat([hidden[:, 1:], hidden[:, -1:]], dim=1)
        values = self.head.of_tokens(hidden, packed.labels.clamp(min=0))
        return values, self._expected(packed, hidden) if q else torch.zeros_like(values)

    @torch.no_grad()
    def _expected(self, packed: Packed, hidden: Tensor) -> Tensor:
        """sum over z of pi_ref(z) V(z) [rows, L], a row at a time: the vocabulary is wide."""
        found = []
        for row in range(len(hidden)):
            one = Packed(*(t[row : row + 1] for t in packed))
            # Apart from the mean, which probabilities that sum to nearly one would round.
            values = self.head.of_all(hidden[row]) - self.head.mean
            logits = self._reference_logits(one)[0].float()
            both = min(values.shape[-1], logits.shape[-1])  # models of one tokenizer may be padded to different widths
            found.append(expected_value(values[:, :both], logits[:, :both].log_softmax(-1)))
        return self.head.mean + torch.stack(found)

    def _reference_logits(self, packed: Packed) -> Tensor:
        (reference,) = self._reference
        model = reference or self.body
        with nullcontext() if reference else self.body.disable_adapter():
            logits: Tensor = model(**_inputs(model, packed), use_cache=False).logits
        return logits


def _inputs(model: Any, packed: Packed) -> dict[str, Any]:
    return {
        "input_ids": packed.input_ids,
        "position_ids": packed.position_ids,
        "attention_mask": attention_mask(model, packed.visible, packed.position_ids),
    }


class _OfPrefixes(Trainer):
    loss_name = ""

    def compute_loss(self, model: Any, inputs: dict[str, Tensor], *_: Any, **__: Any) -> Tensor:
        scorer = self.accelerator.unwrap_model(model)
        packed = Packed(*(inputs.pop(name) for name in Packed._fields))
        sizes, rewards = inputs.pop("lengths"), inputs.pop("rewards")
        rows, answers = sizes.shape
        q = scorer.head.each is not None and self.loss_name == "cd_q"
        values, expected = model(packed, q)
        tokens = by_token(values, packed, answers)
        longest = tokens.shape[2]
        if self.loss_name == "prefix_bt":
            mask = equal_length_prefixes(sizes[:, 0], sizes[:, 1], longest)
            preference: Tensor = prefix_preference_loss(tokens[:, 0], tokens[:, 1], mask).mean()
            return preference
        flat, last = tokens.flatten(0, 1), sizes.flatten() - 1
        order = torch.arange(longest, device=flat.device)
        mask = order <= last[:, None]
        if q:
            after = by_token(expected, packed, answers).flatten(0, 1)
            ends = order == last[:, None]
            # What is expected after token t was read where token t + 1 is predicted.
            losses = q_loss(flat, q_targets(after.roll(-1, 1), rewards.flatten(), ends), mask)
        else:
            losses = fudge_loss(flat, rewards.flatten(), mask)
        scaled = losses.view(rows, answers) / scorer.head.deviation**2
        mean: Tensor = (scaled.sum(1) / (sizes > 0).sum(1)).mean()
        return mean


class PrefixTrainer(Packing, _OfPrefixes):
    """The library's trainer with the losses of prefix scorers, in units of the reward's variance."""
