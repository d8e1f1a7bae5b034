"""Policies to answers: the one door through which everything samples.

A policy is a language model and a rule. Policies over the same model and sampling distribution share one generation:
draw j of a prompt is the same text for all of them, so best-of-2 chooses among half the candidates of best-of-4 and the
plain policy's answers are the first of both.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from registry.artifacts import Artifact
from registry.dialogue_text import decode_answer, encode_prompt
from registry.language_models import context_length, load_language_model
from registry.rows import Prompt
from specs.execution import Execution
from specs.generation import DecodeBestOfN, DecodeGreedy, DecodeSample
from specs.problems import UserError
from tasks.job import Log
from tasks.memory import free_memory
from tasks.sampler import sample
from tasks.scores import Scores


@dataclass(frozen=True)
class Answer:
    """A policy's answer to a prompt."""

    text: str
    tokens: int
    finished: bool


@dataclass(frozen=True)
class Rule:
    """A policy taken apart."""

    model: Artifact
    temperature: float = 1.0
    top_k: int = 0
    top_p: float = 1.0
    n: int = 1
    reward: Artifact | None = None

    @property
    def source(self) -> tuple[str, float, int, float]:
        """What decides the draws: rules with the same source share them."""
        return (self.model.fingerprint, self.temperature, self.top_k, self.top_p)


def rule_of(policy: Artifact) -> Rule:
    entry = policy.entry
    if isinstance(entry, DecodeGreedy):
        return Rule(policy.one("from"), temperature=0.0)
    if isinstance(entry, DecodeSample):
        return Rule(policy.one("from"), entry.temperature, entry.top_k, entry.top_p)
    if isinstance(entry, DecodeBestOfN):
        reward = policy.one("reward")
        return Rule(policy.one("from"), entry.temperature, entry.top_k, entry.top_p, entry.n, reward)
    return Rule(policy)


def answer(
    policies: Sequence[Artifact],
    prompts: Sequence[Prompt],
    *,
    samples: int,
    max_new_tokens: int,
    seed: int,
    execution: Execution,
    log: Log,
    scores: Scores,
) -> list[list[list[Answer]]]:
    """`[policy][prompt][sample]`. One model is in memory at a time."""
    rules = [rule_of(policy) for policy in policies]
    candidates: dict[tuple[str, float, int, float], list[list[Answer]]] = {}
    for source in dict.fromkeys(r.source for r in rules):
        group = [r for r in rules if r.source == source]
        draws = 1 if group[0].temperature == 0 else samples * max(r.n for r in group)
        candidates[source] = _draw(group[0], prompts, draws, max_new_tokens, seed, execution, log)
        free_memory()
    return [_choose(rule, prompts, candidates[rule.source], samples, scores) for rule in rules]


def _draw(
    rule: Rule,
    prompts: Sequence[Prompt],
    draws: int,
    max_new_tokens: int,
    seed: int,
    execution: Execution,
    log: Log,
) -> list[list[Answer]]:
    loaded = load_language_model(rule.model)
    encoded = [encode_prompt(loaded.tokenizer, p.messages) for p in prompts]
    longest = max(map(len, encoded))
    if longest + max_new_tokens > context_length(loaded.model):
        raise UserError(
            f"`{rule.model.name}` reads {context_length(loaded.model)} tokens, and the longest prompt has {longest} "
            f"before {max_new_tokens} new ones; shorten the prompts or `max_new_tokens`"
        )
    drawn = sample(
        loaded.model,
        encoded,
        keys=keys(prompts),
        samples=draws,
        seed=seed,
        max_new_tokens=max_new_tokens,
        eos_ids=loaded.eos_ids,
        temperature=rule.temperature,
        top_k=rule.top_k,
        top_p=rule.top_p,
        rows=execution.rows,
        on_progress=lambda done, total: log.progress(done, total, "responses"),
    )
    return [[Answer(decode_answer(loaded.tokenizer, s.ids), len(s.ids), s.finished) for s in row] for row in drawn]


def _choose(
    rule: Rule,
    prompts: Sequence[Prompt],
    candidates: list[list[Answer]],
    samples: int,
    scores: Scores,
) -> list[list[Answer]]:
    """Sample s of a rule looks at the draws s, s + S, s + 2S, ... of S samples: nested in n."""
    if rule.temperature == 0:
        return [row * samples for row in candidates]
    kept = [row[: samples * rule.n] for row in candidates]
    if rule.reward is None:
        return kept
    rewards = scores.of(rule.reward, prompts, [[a.text for a in row] for row in kept])
    return [
        [row[best_draw(values, s, samples)] for s in range(samples)] for row, values in zip(kept, rewards, strict=True)
    ]


def best_draw(rewards: Sequence[float], sample: int, samples: int) -> int:
    """The draw of highest reward among those of `sample`, the first on a tie."""
    return max(range(sample, len(rewards), samples), key=lambda j: (rewards[j], -j))


def keys(prompts: Sequence[Prompt]) -> list[str]:
    """What a prompt's random numbers belong to: its content, and which of its repetitions it is."""
    seen: dict[str, int] = {}
    result = []
    for prompt in prompts:
        seen[prompt.id] = seen.get(prompt.id, -1) + 1
        result.append(f"{prompt.id}/{seen[prompt.id]}")
    return result
