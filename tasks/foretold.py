"""What a stage of each kind will do, step by step as its body does it: for its memory, its time and its files."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from registry.artifacts import Artifact, soup_weights
from registry.methods import footprint
from specs.execution import Execution
from tasks.foreseen import FULL, Foreseen, Reckoning
from tasks.rules import rule_of
from tasks.standing import precision_of
from tasks.texts import Texts
from tasks.train_foreseen import train

TRACED = 1400
"""Bytes of what an evaluation keeps of each token of one answer under guides: the candidates, and what their scores were."""
HELD_OUT_SAMPLES = 4
"""Of RAFT, to each held-out prompt (`tasks.train_raft`)."""


def foresee(stage: Artifact, execution: Execution, home: Path, share: float = FULL) -> Foreseen:
    """Of a stage that is to be built. `share` is the length of a sampled answer to the most that it may have. Raises
    `Unknown`, and `UserError` where rows cannot be read."""
    reckoning = Reckoning(execution, home, share)
    reckoning.hold(0.0, 0.0)
    KINDS[stage.entry.kind_name](reckoning, stage, stage.entry)
    return reckoning.found


def _model(r: Reckoning, stage: Artifact, entry: Any) -> None:
    size = footprint.weights(r.shape(stage), precision_of(stage))
    r.hold(size, size)
    r.leave(size)


def _sample(r: Reckoning, stage: Artifact, entry: Any) -> None:
    policy = stage.one("from")
    asked = r.texts(stage.one("prompts"), rule_of(policy).model)
    r.draw(policy, asked, entry.samples, entry.max_new_tokens)
    r.leave(_written(asked, entry.samples, r.answered(entry.max_new_tokens)))


def _label(r: Reckoning, stage: Artifact, entry: Any) -> None:
    texts = r.texts(stage.one("responses"), rule_of(stage.one("responses").one("from")).model)
    r.score(stage.one("reward"), texts)
    pairs = texts.rows * min(entry.pairs_per_prompt, texts.each // 2)
    r.leave(pairs * (texts.prompt_bytes + 210 + 2 * texts.letters * texts.tokens / max(texts.each, 1)))


def _decode(r: Reckoning, stage: Artifact, entry: Any) -> None:
    r.leave(250)


def _sft(r: Reckoning, stage: Artifact, entry: Any) -> None:
    chosen = r.fitting(r.texts(stage.one("data"), stage.start).first(1), entry, stage.one("data"))
    _fit(r, stage, entry, chosen)


def _fit(r: Reckoning, stage: Artifact, entry: Any, texts: Texts) -> None:
    widths, longest = texts.apart()
    train(r, entry, stage.start, texts.rows, widths, longest, predicted=texts.most_answered)


def _learn(r: Reckoning, stage: Artifact, entry: Any, texts: Texts, *, beside: float = 0.0) -> None:
    """Training on the log-probabilities of answers that stand side by side behind their prompt."""
    train(r, entry, stage.start, texts.rows, *texts.side_by_side(), predicted=texts.most_answered, beside=beside)


def _reward_model(r: Reckoning, stage: Artifact, entry: Any) -> None:
    texts = r.fitting(r.texts(stage.one("data"), stage.start), entry, stage.one("data"))
    shape = r.shape(stage.start)
    train(r, entry, stage.start, texts.rows, *texts.apart(), sequences=2, head=shape.width)
    for slot in ("test",) if stage.inputs.get("test") else ():
        held_out = r.texts(stage.one(slot), stage.start)
        width = held_out.prompt + held_out.tokens / 2
        r.compute(footprint.Work(operations=footprint.forward(shape, 2 * held_out.rows * width)))


def _dpo(r: Reckoning, stage: Artifact, entry: Any) -> None:
    if stage.inputs.get("data"):
        texts = r.texts(stage.one("data"), stage.start)
    else:
        texts = _own(r, stage, entry, entry.samples)
        texts = texts.asked(2, r.answered(entry.max_new_tokens), entry.max_new_tokens)
    texts = r.fitting(texts, entry, *stage.inputs.get("data", ()))
    widths, longest = texts.apart()
    predicted = texts.most_answered
    train(r, entry, stage.start, texts.rows, widths, longest, sequences=2, predicted=predicted, reference=True)


def _own(r: Reckoning, stage: Artifact, entry: Any, samples: int) -> Texts:
    """What a stage draws from the model it improves, scored and written down."""
    asked = r.texts(stage.one("prompts" if "prompts" in stage.inputs else "data"), stage.start)
    drawn = asked.asked(samples, r.answered(entry.max_new_tokens), entry.max_new_tokens)
    r.draw(stage.start, asked, samples, entry.max_new_tokens)
    r.score(stage.one("reward"), drawn)
    r.leave(_written(asked, samples, r.answered(entry.max_new_tokens), beside=50))
    return drawn


def _rrhf(r: Reckoning, stage: Artifact, entry: Any) -> None:
    how, data = entry.candidates, stage.one("data")
    given = r.texts(data, stage.start)
    count = getattr(how, "count", 0)
    texts = given
    if count:
        tokens = r.answered(entry.max_new_tokens)
        _own(r, stage, entry, count)
        texts = given.asked(count, tokens, entry.max_new_tokens, beside=how.data)
    else:
        r.score(stage.one("reward"), texts)
        r.leave(_written(texts, 2, texts.tokens / 2, beside=50))
    texts = r.fitting(texts, entry, data)
    _learn(r, stage, entry, texts)
    if stage.inputs.get("test"):
        held_out = r.texts(stage.one("test"), stage.start)
        for _ in range(2):
            r.read(stage.start, held_out)


def _raft(r: Reckoning, stage: Artifact, entry: Any) -> None:
    drawn = _own(r, stage, entry, entry.samples)
    if stage.inputs.get("held_out"):
        asked = r.texts(stage.one("held_out"), stage.start)
        for _ in range(1 if stage.inputs.get("previous") else 2):
            r.draw(stage.start, asked, HELD_OUT_SAMPLES, entry.max_new_tokens)
            r.score(
                stage.one("reward"),
                asked.asked(HELD_OUT_SAMPLES, r.answered(entry.max_new_tokens), entry.max_new_tokens),
            )
    if entry.kl_penalty and stage.inputs.get("previous"):
        r.read(stage.start, drawn)
        r.read(stage.one("from"), drawn)
    best = r.fitting(drawn.first(1), entry)
    _fit(r, stage, entry, best)


def _rl(r: Reckoning, stage: Artifact, entry: Any) -> None:
    asked, reward = r.texts(stage.one("prompts"), stage.start), r.reward_weights(stage.one("reward"))
    batch = max(1.0, min(entry.batch_size, asked.rows))
    asked = replace(asked, rows=math.ceil(asked.rows / batch) * batch)  # a pass's last batch is filled up
    _draw_each_step(r, stage, entry, asked, [entry.samples], reward)
    drawn = asked.asked(entry.samples, r.answered(entry.max_new_tokens), entry.max_new_tokens)
    train(
        r, entry, stage.start, asked.rows, *drawn.apart(), predicted=entry.max_new_tokens,
        each=entry.samples, reference=bool(entry.beta), beside=reward,
    )  # fmt: skip


def _bond(r: Reckoning, stage: Artifact, entry: Any) -> None:
    asked, reward = r.texts(stage.one("prompts"), stage.start), r.reward_weights(stage.one("reward"))
    second = r.weights(stage.start, "fp32") if entry.lora is None else 0.0
    _draw_each_step(r, stage, entry, asked, [1, 2], reward + second)
    two = asked.asked(2, r.answered(entry.max_new_tokens), entry.max_new_tokens)
    r.read(stage.start, two.first(1), beside=reward + second, times=entry.epochs)
    _learn(r, stage, entry, two, beside=reward + second)


def _draw_each_step(
    r: Reckoning, stage: Artifact, entry: Any, asked: Texts, draws: Sequence[int], beside: float
) -> None:
    """What a step's prompts are answered with, by one draw after another, and scored; the reward stays in memory."""
    few = replace(asked, rows=float(min(entry.batch_size, asked.rows)))
    drawn = few.asked(sum(draws), r.answered(entry.max_new_tokens), entry.max_new_tokens)
    reward = stage.one("reward")
    with r.repeated(entry.epochs * asked.rows / max(few.rows, 1.0)):
        for samples in draws:
            r.draw(stage.start, few, samples, entry.max_new_tokens, beside=beside)
        r.score(reward, drawn, beside=r.weights(stage.start) + beside - r.reward_weights(reward))


def _candidates(r: Reckoning, stage: Artifact, entry: Any) -> None:
    """Training on the answers of the data, side by side: autoregressive reward models, QRPO."""
    texts = r.texts(stage.one("data"), stage.start)
    if stage.inputs.get("reward"):
        r.score(stage.one("reward"), texts)
        r.read(stage.start, texts)
    texts = r.fitting(texts, entry, stage.one("data"))
    _learn(r, stage, entry, texts)
    if stage.inputs.get("test"):
        r.read(stage.start, r.texts(stage.one("test"), stage.start))


def _prefix_scorer(r: Reckoning, stage: Artifact, entry: Any) -> None:
    by_pairs = entry.loss == "prefix_bt"
    rows = stage.one("data" if by_pairs else "responses")
    texts = r.fitting(r.texts(rows, stage.start), entry, rows)
    shape = r.shape(stage.start)
    if not by_pairs:
        r.score(stage.one("reward"), texts)
    vocabulary = entry.loss == "cd_q" or entry.head == "vocabulary"
    head = shape.width * (1 + (shape.vocabulary if vocabulary else 0))
    widths, longest = texts.side_by_side()
    q = entry.loss == "cd_q"
    beside = 3 * longest * shape.vocabulary * 4 if q else 0.0
    train(
        r, entry, stage.start, texts.rows, widths, longest, head=head, beside=beside, reference=q
    )  # fmt: skip


def _soup(r: Reckoning, stage: Artifact, entry: Any) -> None:
    shape, experts = r.shape(stage.start), stage.inputs["experts"]
    if entry.rule == "weights":
        whole = footprint.weights(shape, "fp32")
        r.hold(whole * (1 + len(experts)), 0.0)
        r.leave(whole)
        return
    ranks = [sum(lora.rank for lora in _adapters(expert, stage.start)) for expert in experts]
    kept = [rank for rank, weight in zip(ranks, soup_weights(stage), strict=True) if weight]
    rank = max(ranks) if entry.rule == "factors" else sum(kept)
    own = 4 * footprint.adapter(shape, rank)
    r.hold(0.0, 4 * own + 8 * 4.0 * shape.linear / max(shape.layers, 1))
    # Every layer's update is laid out and compared with the experts', corner by corner.
    r.compute(footprint.Work(operations=2.0 * shape.linear * rank * (2 + len(experts)) * 2, loaded=own))
    r.leave(own)


def _adapters(expert: Artifact, shared: Artifact) -> Iterator[Any]:
    """Of an expert, down to the model that all share."""
    while expert.fingerprint != shared.fingerprint and "experts" not in expert.inputs:
        if lora := getattr(expert.entry, "lora", None):
            yield lora
        expert = expert.start


def _calibrate(r: Reckoning, stage: Artifact, entry: Any) -> None:
    policy = stage.one("reference")
    asked = r.texts(stage.one("prompts"), rule_of(policy).model)
    tokens = r.answered(entry.max_new_tokens)
    r.draw(policy, asked, entry.samples + 1, entry.max_new_tokens)
    r.score(stage.one("reward"), asked.asked(entry.samples + 1, tokens, entry.max_new_tokens))
    r.leave(asked.rows * (30 + entry.samples * (asked.letters * tokens + 24)))


def _evaluate(r: Reckoning, stage: Artifact, entry: Any) -> None:
    policies = {p.fingerprint: p for p in (*stage.inputs["policies"], stage.one("against"))}
    rules = [rule_of(p) for p in policies.values()]
    reference = rule_of(stage.one("against")).model
    r.meet_shapes(precision_of(reference), len(rules))
    budget, rewards = entry.budget, stage.inputs["rewards"]
    asked = r.texts(stage.one("prompts"), reference)
    tokens = r.answered(budget.max_new_tokens)
    scored = 0
    for batch in dict.fromkeys(rule.batch for rule in rules):
        group = [rule for rule in rules if rule.batch == batch]
        sources = len({rule.source for rule in group})
        draws = 1 if group[0].temperature == 0 else budget.samples_per_prompt * max(rule.n for rule in group)
        r.draw_of(group[0], asked, draws * sources, budget.max_new_tokens)
        scored += draws * sources
    for reward in {x.fingerprint: x for x in (*rewards, *(rule.reward for rule in rules if rule.reward))}.values():
        r.score(reward, asked.asked(scored, tokens, budget.max_new_tokens))
    shown = asked.asked(budget.samples_per_prompt, tokens, budget.max_new_tokens)
    for rule in rules:
        if rule.guided is None and rule.temperature > 0:
            r.compare(rule.model, reference, shown)
        else:
            r.read(reference, shown if rule.temperature > 0 else asked.asked(1, tokens, budget.max_new_tokens))
    if stage.inputs.get("perplexity_of"):
        given = r.texts(stage.one("perplexity_of"), reference)
        for model in {rule.model.fingerprint: rule.model for rule in rules if rule.is_model}.values():
            r.read(model, given)
    answers = len(stage.inputs["policies"]) * asked.rows * budget.samples_per_prompt
    r.leave(answers * (asked.prompt_bytes + asked.letters * tokens + 160 + 22 * len(rewards)))
    r.leave(len(stage.inputs["policies"]) * 1500 * (2 + len(rewards)))
    r.leave(sum(rule.guided is not None for rule in rules) * tokens * TRACED)


def _written(texts: Texts, samples: int, tokens: float, beside: float = 0.0) -> float:
    """Bytes of a table of responses."""
    return texts.rows * (texts.prompt_bytes + 60 + samples * (texts.letters * tokens + 50 + beside))


KINDS: dict[str, Callable[[Reckoning, Artifact, Any], None]] = {
    "model": _model,
    "sample": _sample,
    "label": _label,
    "decode": _decode,
    "sft": _sft,
    "reward_model": _reward_model,
    "autoregressive_reward_model": _candidates,
    "prefix_scorer": _prefix_scorer,
    "calibrate": _calibrate,
    "rl": _rl,
    "rrhf": _rrhf,
    "raft": _raft,
    "dpo": _dpo,
    "qrpo": _candidates,
    "bond": _bond,
    "soup": _soup,
    "evaluate": _evaluate,
}
