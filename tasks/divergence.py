"""How far policies are from a reference model, and how likely their answers are to it, read from the answers afterwards.

A language model's answers are read by it and by the reference side by side, so that every token's divergence is exact. What
guides draw from was measured while they drew (`tasks.meter`). A greedy answer is the only one: the divergence is minus its
log-probability. Best-of-n (and worst-of-n) has the divergence of choosing among n draws of its model, by the estimator of
arXiv 2401.01879, and what that model itself is away from the reference.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from registry.artifacts import Artifact, bottom
from registry.bases import Bases
from registry.dialogue_text import encode_prompt
from registry.four_bits import is_rounded
from registry.language_models import LanguageModel, load_language_model, load_tokenizer
from registry.log_probs import Row, attention_mask, score_rows
from registry.methods.best_of_n import kl_bound, kl_estimate
from registry.methods.divergence import blockwise_bound, k1, k3, sampled_token, token_kl
from registry.methods.draws import decoding_weights
from registry.methods.shared_prompt import IGNORED, pack
from registry.rows import Prompt
from registry.vocabularies import difference
from specs.decoding import DecodeControlled
from tasks.account import Account
from tasks.drawing import Answer
from tasks.memory import free_memory
from tasks.meter import Sums
from tasks.rules import Rule

Array = NDArray[np.float64]

TOGETHER = 1024
"""Tokens of one prompt's answers that are read at a time, with what each is drawn from; one answer at least."""
CHUNK = 1 << 19
"""Probabilities that are compared at a time, in double precision: in larger pieces a processor spends its time on mapping memory."""


@dataclass(frozen=True)
class Distances:
    """Of each answer [prompts, samples], in nats."""

    reference: Array
    """Its log-probability under the reference, given the prompt."""
    estimates: dict[str, Array]
    """Estimates of the divergence by their names: `rao_blackwell`, `k1`, `k3`; `point_mass`; `best_of_n`; and `bound`, which
    the divergence is at most. Empty where what is drawn from is not known."""


@dataclass(frozen=True)
class Ruler:
    """See the module."""

    account: Account
    prompts: Sequence[Prompt]
    rows: int
    """Answers whose log-probabilities alone are read at a time."""

    @cached_property
    def _bases(self) -> Bases:
        return Bases()

    @cached_property
    def _reference(self) -> LanguageModel:
        return self._loaded(self.account.reference)

    def distances(self, rule: Rule, answers: list[list[Answer]], rewards: Array | None = None) -> Distances | None:
        """Of a policy's answers; None where the reference has other tokens, so that it gives them no probability. `rewards` of
        all draws [prompts, draws], where a reward chose among them."""
        theirs = self._reference.tokenizer
        if not self._shares(rule.model):
            ours = load_tokenizer(bottom(rule.model))
            if difference(ours.get_vocab(), theirs.get_vocab()) is not None:
                return None
        samples = len(answers[0])
        shown = [row[:1] if rule.temperature == 0 else row for row in answers]
        if rule.guided is None and rule.temperature > 0:
            return self._beside(rule, shown, rewards)
        found = score_rows(self._reference.model, self._rows_of(theirs, shown), batch=self.rows)
        reference = np.array(found).repeat(samples // len(found[0]), axis=1)
        if rule.temperature == 0:
            return Distances(reference, {"point_mass": -reference})
        return Distances(reference, self._guided(rule, answers))

    def _guided(self, rule: Rule, answers: list[list[Answer]]) -> dict[str, Array]:
        sums = self.account.drawings[rule.source].sums
        if sums is not None:
            each = [[of[a.draw] for a in row] for of, row in zip(sums, answers, strict=True)]
            return _named(np.array(each), full=_draws_from_all(rule))
        assert rule.guided is not None
        entry = rule.guided.entry
        is_own = rule.model.fingerprint == self.account.reference.fingerprint
        plain = rule.temperature == 1 and not rule.top_k and rule.top_p == 1
        if isinstance(entry, DecodeControlled) and entry.block and entry.samples and is_own and plain:
            lengths = torch.tensor([[float(a.tokens) for a in row] for row in answers])
            return {"bound": blockwise_bound(lengths, entry.samples, entry.block).numpy().astype(np.float64)}
        return {}

    def _beside(self, rule: Rule, answers: list[list[Answer]], rewards: Array | None) -> Distances:
        is_own = rule.model.fingerprint == self.account.reference.fingerprint
        policy = self._reference if is_own else self._loaded(rule.model)
        theirs = self._rows_of(self._reference.tokenizer, answers)
        ours = theirs if is_own else self._rows_of(policy.tokenizer, answers)
        found = np.array([
            [
                sums
                for some in _together(mine[1])
                for sums in _side_by_side(policy.model, (mine[0], some), self._reference.model, (its[0], some), rule)
            ]
            for mine, its in zip(ours, theirs, strict=True)
        ])  # fmt: skip
        del policy
        free_memory()
        named = _named(found, full=not (rule.top_k or rule.top_p < 1))
        reference = found[..., Sums._fields.index("reference")]
        if rewards is None:
            return Distances(reference, named)
        own = np.exp(named["k1"] + reference)
        same = own + _ties(answers, self.account.drawings[rule.source].answers, rewards)
        return Distances(reference, {
            "best_of_n": kl_estimate(np.minimum(same, 1.0), rule.n) + named["k1"],
            "bound": np.full_like(own, kl_bound(rule.n)) + named["k1"],
        })  # fmt: skip

    def _rows_of(self, tokenizer: Any, answers: list[list[Answer]]) -> list[Row]:
        pairs = zip(self.prompts, answers, strict=True)
        return [(encode_prompt(tokenizer, prompt.messages), [a.ids for a in row]) for prompt, row in pairs]

    def _shares(self, artifact: Artifact) -> bool:
        """Whether a model stands on the weights, and has the tokens, that the reference does."""
        return bottom(artifact).fingerprint == bottom(self.account.reference).fingerprint

    def _loaded(self, artifact: Artifact) -> LanguageModel:
        bases = self._bases if self._shares(artifact) else None
        return load_language_model(artifact, four_bits="rounded" if is_rounded(artifact) else None, bases=bases)


def _ties(answers: list[list[Answer]], drawn: list[list[Answer]], rewards: Array) -> Array:
    """[prompts, samples]: of each answer that a reward chose, the share of the other draws to its prompt that are another text
    of the same reward, an unbiased estimate of how likely such a draw is."""
    found = []
    for chosen, row, values in zip(answers, drawn, rewards.tolist(), strict=True):
        by_text = [(a.ids, value) for a, value in zip(row, values, strict=False)]  # others may have drawn on
        of_reward = Counter(value for _, value in by_text)
        of_both = Counter(by_text)
        others = max(1, len(values) - 1)
        found.append([(of_reward[v := values[a.draw]] - of_both[a.ids, v]) / others for a in chosen])
    return np.array(found)


def _draws_from_all(rule: Rule) -> bool:
    """Whether every token that the reference may give may be drawn."""
    assert rule.guided is not None
    return not (rule.top_k or rule.top_p < 1 or getattr(rule.guided.entry, "candidates", 0))


def _named(sums: Array, *, full: bool) -> dict[str, Array]:
    """[prompts, samples, `Sums`] by the names of the estimators."""
    names = ("rao_blackwell", "k1", "k3") if full else ("rao_blackwell", "k1")
    return {name: sums[..., Sums._fields.index(name)] for name in names}


def _together(answers: Sequence[Sequence[int]]) -> Iterator[list[Sequence[int]]]:
    some: list[Sequence[int]] = []
    for answer in answers:
        if some and sum(map(len, some)) + len(answer) > TOGETHER:
            yield some
            some = []
        some.append(answer)
    yield some


@torch.inference_mode()
def _side_by_side(policy: Any, ours: Row, reference: Any, theirs: Row, rule: Rule) -> Iterator[Sums]:
    """Of each answer to one prompt, which is read once."""
    tokens = torch.tensor([token for answer in ours[1] for token in answer], device=reference.device)
    owners = torch.tensor([i for i, answer in enumerate(ours[1]) for _ in answer], device=reference.device)
    its = _logits(reference, theirs)
    own = its if policy is reference else _logits(policy, ours)
    size = min(own.shape[1], its.shape[1])  # what one model's spare embeddings give has no token
    sums = torch.zeros(len(ours[1]), len(Sums._fields), dtype=torch.float64, device=reference.device)
    positions = max(1, CHUNK // size)
    for at in range(0, len(tokens), positions):
        here = slice(at, at + positions)
        weights = decoding_weights(own[here, :size].float(), rule.temperature, rule.top_k, rule.top_p)
        if rule.top_k or rule.top_p < 1:
            # Read in another batch a token at the edge may be rounded out of what is kept. It was drawn: there it is again.
            whole = decoding_weights(own[here, :size].float(), rule.temperature, 0, 1.0)
            weights = weights.scatter(1, tokens[here, None], whole.gather(1, tokens[here, None]))
        # In single precision the sum over a large vocabulary is off by 1e-5, and a model is away from itself.
        log_probs = its[here, :size].double().log_softmax(-1)
        log_own, log_its = sampled_token(weights, tokens[here]), log_probs.gather(1, tokens[here, None])[:, 0]
        each = [token_kl(weights, log_probs), k1(log_own, log_its), k3(log_own, log_its), log_its]
        sums.index_add_(0, owners[here], torch.stack(each, dim=1))
    return (Sums(*row) for row in sums.tolist())


def _logits(model: Any, row: Row) -> Tensor:
    """[tokens, vocabulary]: what each token of the answers is drawn from, in their order."""
    packed = pack([row])
    ids, positions, visible = (t.to(model.device) for t in (packed.input_ids, packed.position_ids, packed.visible))
    predicts = (packed.labels[0] != IGNORED).nonzero()[:, 0].to(model.device)
    mask = attention_mask(model, visible, positions)
    with torch.autocast(model.device.type, torch.bfloat16, enabled=model.dtype == torch.bfloat16):
        found: Tensor = model(
            input_ids=ids, position_ids=positions, attention_mask=mask, use_cache=False, logits_to_keep=predicts
        ).logits[0]
    return found
