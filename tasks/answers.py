"""Policies to answers: the one door through which everything samples.

A policy is a language model and a rule. Policies over the same model and sampling distribution share one generation:
draw j of a prompt is the same text for all of them, so best-of-2 chooses among half the candidates of best-of-4 and the
plain policy's answers are the first of both. Soups of the same experts are drawn in one batch, each row with weights of
its own, so that a whole grid costs little more than one policy.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import torch

from registry.artifacts import Artifact, soup_weights
from registry.bases import Bases
from registry.dialogue_text import decode_answer, encode_prompt
from registry.four_bits import is_rounded
from registry.language_models import context_length
from registry.rows import Prompt
from registry.updates import expert_of
from specs.execution import Execution
from specs.problems import UserError
from tasks.account import Account
from tasks.batch import Companion, NotFinite
from tasks.clock import Clock
from tasks.drawing import Answer
from tasks.guidance import Guidance
from tasks.guides import Guides
from tasks.job import Log
from tasks.memory import free_memory, peak_memory
from tasks.models import Models
from tasks.reader import Positions
from tasks.room import no_room
from tasks.row_lora import install
from tasks.rules import Rule, Source, rule_of
from tasks.sampler import sample
from tasks.scores import Scores
from tasks.slot_cache import check_room
from tasks.trace import Observer, in_words, tell_draws


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
    stream: str = "",
    models: Models | None = None,
    observer: Observer | None = None,
    account: Account | None = None,
) -> list[list[list[Answer]]]:
    """`[policy][prompt][sample]`. One policy is in memory at a time, unless `models` holds them. `stream` names random
    numbers of one's own, which no other draw shares. `observer` hears of every choice (`tasks.trace`); `account` is told what
    was drawn and what it cost."""
    rules = [rule_of(policy) for policy in policies]
    found: dict[Source, list[list[Answer]]] = {}
    for batch in dict.fromkeys(r.batch for r in rules):
        group = [r for r in rules if r.batch == batch]
        sources = list({r.source: r for r in group}.values())
        if account is not None and (before := account.recalled([r.source for r in sources])):
            found |= before
            continue
        draws = 1 if group[0].temperature == 0 else samples * max(r.n for r in group)
        drawn = draw(
            sources,
            prompts,
            draws,
            max_new_tokens,
            seed,
            execution,
            log,
            chosen=min(samples, draws),
            stream=stream,
            models=models,
            observer=observer,
            account=account,
        )
        found |= {r.source: rows for r, rows in zip(sources, drawn, strict=True)}
        free_memory()
    return [_choose(rule, prompts, found[rule.source], samples, scores, observer) for rule in rules]


def draw(
    rules: Sequence[Rule],
    prompts: Sequence[Prompt],
    draws: int,
    max_new_tokens: int,
    seed: int,
    execution: Execution,
    log: Log,
    *,
    chosen: int | None = None,
    stream: str = "",
    models: Models | None = None,
    observer: Observer | None = None,
    account: Account | None = None,
) -> list[list[list[Answer]]]:
    """`[rule][prompt][draw]` of rules with one `batch`: of their models and distribution; what else a rule says is not
    applied. `chosen`: see `tasks.sampler.sample`."""
    model, guided = rules[0].model, rules[0].guided
    shared = model.start if rules[0].is_mixed else model
    models = models or Models(execution.rows, Bases() if guided else None)
    loaded = models.language_model(shared, "rounded" if is_rounded(model) else None)
    encoded = [encode_prompt(loaded.tokenizer, p.messages) for p in prompts]
    leave_room(model.name, loaded.model, encoded, max_new_tokens)
    count, guides = Positions(), None
    events: list[Mapping[str, Any]] = []
    asked: dict[str, Any] = {
        "count": count,
        "keys": keys(prompts, stream) * len(rules),
        "samples": draws,
        "chosen": chosen,
        "seed": seed,
        "max_new_tokens": max_new_tokens,
        "eos_ids": loaded.eos_ids,
        "temperature": rules[0].temperature,
        "top_k": rules[0].top_k,
        "top_p": rules[0].top_p,
        "rows": execution.rows,
        "on_progress": lambda done, total: log.progress(done, total, "responses"),
    }
    with (
        naming(guided.name if guided else model.name, prompts),
        _mixed(rules, loaded.model, len(prompts)) as on_rows,
        peak_memory() as peak,
    ):
        if guided is not None:
            measured = account.reference if account and rules[0].temperature > 0 else None
            hears = Observer(events.append, only=(0, 0)) if account else observer
            guides = Guides(guided, loaded, models, hears, measured)
            for prompt in prompts:
                guides.give(prompt, max_new_tokens)
            way: Companion | None = guides.way
        else:
            way = Guidance([], observer=observer) if observer else None
        clock = Clock()
        drawn = sample(loaded.model, encoded * len(rules), on_rows=on_rows, guidance=way, **asked)
        spent = clock.read()
    rows = [
        [Answer(decode_answer(loaded.tokenizer, s.ids), s.ids, s.finished, j) for j, s in enumerate(row)]
        for row in drawn
    ]
    found = [rows[start : start + len(prompts)] for start in range(0, len(rows), len(prompts))]
    if account is not None:
        sources = [rule.source for rule in rules]
        words = [in_words(event, loaded.tokenizer.decode) for event in events]
        account.note(list(zip(sources, found, strict=True)), count, guides, words, spent, peak[0])
    return found


@contextmanager
def naming(model: str, prompts: Sequence[Prompt]) -> Iterator[None]:
    """Logits that are no numbers, told with the prompt as the person knows it."""
    try:
        yield
    except NotFinite as error:
        asked = ending(prompts[error.prompt % len(prompts)])
        raise UserError(f"`{model}` gives logits that are no numbers to {asked}; look at its weights") from error


def ending(prompt: Prompt) -> str:
    """A prompt as the person knows it again."""
    return repr(prompt.messages[-1]["content"][-60:])


@contextmanager
def _mixed(rules: Sequence[Rule], model: Any, prompts: int) -> Iterator[Callable[[Sequence[int]], None] | None]:
    """The experts of soups laid on the model that they share; what is yielded gives each row of a batch its weights. The
    prompts stand in the batch once for each rule, rule after rule."""
    first = rules[0].model
    if not rules[0].is_mixed:
        yield None
        return
    experts = [expert_of(artifact, first.start).update for artifact in first.inputs["experts"]]
    table = torch.tensor([soup_weights(rule.model) for rule in rules])
    with install(model, experts) as weights:
        yield lambda rows: weights.set(table[[row // prompts for row in rows]])


def _choose(
    rule: Rule,
    prompts: Sequence[Prompt],
    candidates: list[list[Answer]],
    samples: int,
    scores: Scores,
    observer: Observer | None,
) -> list[list[Answer]]:
    """Sample s of a rule looks at the draws s, s + S, s + 2S, ... of S samples: nested in n."""
    if rule.temperature == 0:
        return [row * samples for row in candidates]
    kept = [row[: samples * rule.n] for row in candidates]
    if rule.reward is None:
        return kept
    rewards = scores.of(rule.reward, prompts, [[a.text for a in row] for row in kept])
    chosen = []
    for place, (row, values) in enumerate(zip(kept, rewards, strict=True)):
        chosen.append([row[best_draw([rule.sign * value for value in values], s, samples)] for s in range(samples)])
        for s, one in enumerate(chosen[-1] if observer else ()):
            assert observer is not None
            numbers = range(s, len(row), samples)
            texts, own = [row[j].text for j in numbers], [values[j] for j in numbers]
            tell_draws(observer, place, s, texts, numbers, own, one.draw)
    return chosen


def best_draw(rewards: Sequence[float], sample: int, samples: int) -> int:
    """The draw of highest reward among those of `sample`, the first on a tie."""
    return max(range(sample, len(rewards), samples), key=lambda j: (rewards[j], -j))


def keys(prompts: Sequence[Prompt], stream: str = "", after: Sequence[str] = ()) -> list[str]:
    """What a prompt's random numbers belong to: its content, which of its repetitions it is, and the stream. Repetitions are
    counted on from the ids `after` which they come."""
    seen = {prompt: count - 1 for prompt, count in Counter(after).items()}
    result = []
    for prompt in prompts:
        seen[prompt.id] = seen.get(prompt.id, -1) + 1
        result.append(f"{prompt.id}/{seen[prompt.id]}" + (f"/{stream}" if stream else ""))
    return result


def leave_room(name: str, model: Any, prompts: Sequence[Sequence[int]], new: int) -> None:
    """Raises `UserError` where a prompt's tokens leave too few of the model's positions for `new` ones, and where the
    sampler cannot run the model at all."""
    longest, limit = max(map(len, prompts)), context_length(model)
    if longest + new > limit:
        raise UserError(no_room(name, limit, longest, new))
    try:
        check_room(model, range(1, len(prompts) + 1), prompts, new)
    except ValueError as error:
        raise UserError(f"`{name}`: {error}") from None
