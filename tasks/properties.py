"""What a policy's answers are like, apart from their rewards: length, ends, wording, and how far they are from a reference."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from registry.dialogue_text import encode_answer, encode_prompt
from registry.language_models import context_length, load_language_model
from registry.log_probs import score_rows
from registry.methods.comparison import Interval, interval, rate_interval
from registry.methods.perplexity import perplexity
from registry.methods.repetition import diversity, is_degenerate, is_refusal
from registry.rows import Pair, Prompt
from specs.problems import UserError
from tasks.account import Account
from tasks.divergence import Ruler
from tasks.drawing import Answer
from tasks.job import Job
from tasks.memory import free_memory
from tasks.rules import Rule
from tasks.scores import Scores

Array = NDArray[np.float64]


@dataclass(frozen=True)
class Properties:
    """Measures answers to the prompts of an evaluation, each as its mean over prompts with an interval."""

    job: Job
    prompts: Sequence[Prompt]

    def interval(self, values: Array) -> Interval:
        """Of one value a prompt."""
        return interval(values, **self._options)

    def rate(self, values: Array) -> Interval:
        """Of one share a prompt."""
        return rate_interval(values, **self._options)

    def wording(self, answers: list[list[Answer]]) -> dict[str, Any]:
        """What can be read off the texts."""

        def by_prompt(of: Any) -> Array:
            return np.array([np.mean([float(of(a)) for a in row]) for row in answers])

        def mean(of: Any) -> dict[str, float]:
            return self.interval(by_prompt(of))._asdict()

        def rate(of: Any) -> dict[str, float]:
            return self.rate(by_prompt(of))._asdict()

        return {
            "length": mean(lambda a: a.tokens),
            "finished": float(np.mean([a.finished for row in answers for a in row])),
            "texts": {
                "diversity": mean(lambda a: diversity(a.text, "paper")),
                "diversity_official_code": mean(lambda a: diversity(a.text, "official_code")),
                "truncated": rate(lambda a: not a.finished),
                "degenerate": rate(lambda a: is_degenerate(a.text)),
                "refusals": rate(lambda a: is_refusal(a.text)),
            },
        }

    def likelihoods(
        self, rules: Sequence[Rule], answers: Sequence[list[list[Answer]]], account: Account, scores: Scores
    ) -> list[dict[str, Any]]:
        """Of each policy, estimates of its divergence from the reference by their names (none where that is not known), and
        perplexities: of its own answers under the reference, and of the given ones under its language model."""
        ruler = Ruler(account, self.prompts, self.job.execution.rows)
        found: list[dict[str, Any]] = []
        for number, (rule, rows) in enumerate(zip(rules, answers, strict=True)):
            self.job.log.progress(number + 1, len(rules), "policies read by the reference")
            distances = ruler.distances(rule, rows, self._chose(rule, account, scores))
            kl, perplexities = {}, {}
            if distances is not None:
                kl = {name: self.interval(each.mean(axis=1))._asdict() for name, each in distances.estimates.items()}
                tokens = np.array([sum(a.tokens for a in row) for row in rows], dtype=float)
                perplexities["own"] = perplexity(distances.reference.sum(axis=1), tokens, **self._options)._asdict()
            found.append({"kl": kl, "perplexity": perplexities})
        return found

    def _chose(self, rule: Rule, account: Account, scores: Scores) -> Array | None:
        """The rewards of all draws that a policy's own reward chose among; None where none did."""
        if rule.reward is None:
            return None
        draws = account.draws_of(rule, self.job.entry.budget.samples_per_prompt)
        texts = [[a.text for a in row] for row in draws]
        return np.array(scores.of(rule.reward, self.prompts, texts))

    def of_given(self, rules: Sequence[Rule], pairs: Sequence[Pair]) -> list[dict[str, float] | None]:
        """The perplexity of the chosen answers of `pairs` under each policy; None for a policy that is more than a language
        model as it is."""
        known: dict[str, dict[str, float]] = {}
        for rule in rules:
            if rule.is_model and rule.model.fingerprint not in known:
                known[rule.model.fingerprint] = self._of_given(rule, pairs)._asdict()
        return [known.get(rule.model.fingerprint) if rule.is_model else None for rule in rules]

    def _of_given(self, rule: Rule, pairs: Sequence[Pair]) -> Interval:
        loaded = load_language_model(rule.model)
        by_prompt: dict[str, tuple[list[int], list[list[int]]]] = {}
        for pair in pairs:
            ids = encode_answer(loaded.tokenizer, pair.prompt, pair.chosen, finished=pair.chosen_finished)
            own = by_prompt.setdefault(
                Prompt(tuple(pair.prompt)).id, (encode_prompt(loaded.tokenizer, pair.prompt), [])
            )
            own[1].append(ids)
        rows = list(by_prompt.values())
        longest, limit = (
            max(len(prompt) + max(map(len, answers)) for prompt, answers in rows),
            context_length(loaded.model),
        )
        if longest > limit:
            raise UserError(
                f"`perplexity_of`: the longest dialogue has {longest} tokens, and `{rule.model.name}` reads {limit}; leave the long "
                "ones out"
            )
        sums = np.array([sum(row) for row in score_rows(loaded.model, rows, batch=self.job.execution.rows)])
        tokens = np.array([sum(map(len, answers)) for _, answers in rows], dtype=float)
        del loaded
        free_memory()
        return perplexity(sums, tokens, **self._options)

    @property
    def _options(self) -> dict[str, Any]:
        entry = self.job.entry
        return {"confidence": entry.confidence, "resamples": entry.resamples, "seed": self.job.seed}
