"""The `rrhf` body: candidates to each prompt, their rewards, and the ranking loss on all of them in one row."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from statistics import fmean
from typing import Any

from torch import Tensor

from registry.dialogue_text import decode_answer, encode_prompt
from registry.language_models import load_language_model, own_precision
from registry.log_probs import Row, score_rows
from registry.methods import rrhf
from registry.rows import Pair, Prompt
from specs.problems import UserError
from specs.reward_training import DataCandidates, DiverseBeamCandidates, SampledCandidates
from tasks.answers import leave_room, naming
from tasks.beam import beam_search
from tasks.candidates import held_out, pairs_with_answers, train_on_candidates
from tasks.drawing import Answer
from tasks.inputs import distinct_prompts_of, once, pairs_of
from tasks.job import Job, Result
from tasks.memory import free_memory
from tasks.own_samples import Drawn, drawn_once, own_samples, scored, usable, write_samples
from tasks.pair_accuracy import pair_accuracy
from tasks.threads import use_threads
from tasks.training import check_lengths, load_start, training_rows, without_weights


def train_rrhf(job: Job) -> Result:
    """Draws, ranks, trains, tests, and writes the adapter (or all weights)."""
    use_threads(job.execution)
    test = pairs_with_answers(job, "test") if job.many("test") else []
    start = without_weights(job)
    tested, test = held_out(job, start, test)
    prompts, candidates = _candidates(job)
    answers = [[(p.messages, a.text, a.finished) for a in row] for p, row in zip(prompts, candidates, strict=True)]
    rows, used = training_rows(job, start.model, start.tokenizer, answers, one_prompt=True)
    rewards = scored(job, job.one("reward"), prompts, candidates)
    write_samples(job, prompts, candidates, rewards, lambda p, s: "candidate")
    base = load_start(job)
    before = _mean_log_probs(job, base.model, tested)
    given: dict[str, Sequence[Any]] = {
        "rewards": [_ranks(rewards[i]) for i in used],
        "padded": [float(len(row[0][0]) + max(len(answer) for _, answer in row)) for row in rows],
    }
    curve, model = train_on_candidates(job, base, rows, given, _loss(job.entry.rank_weight, job.entry.sft_term))
    after = _mean_log_probs(job, model, tested)
    chosen = [values for i, values in enumerate(rewards) if i in set(used)]
    return Result(
        {
            "prompts": float(len(rows)),
            "candidates_per_prompt": fmean(len(row) for row in rows),
            "dropped_too_long": float(len(answers) - len(used)),
            "reward": fmean(r for values in chosen for r in values),
            "reward_best": fmean(max(values) for values in chosen),
            "tied": fmean(len(values) - len(set(values)) for values in chosen),
        }
        | curve
        | (pair_accuracy(after, test, seed=job.seed, before=before) if test else {})
    )


def _loss(rank_weight: float, sft_term: rrhf.Sft) -> Any:
    def loss(log_probs: Tensor, lengths: Tensor, given: Mapping[str, Tensor]) -> tuple[Tensor, Mapping[str, Tensor]]:
        mask = lengths > 0
        losses = rrhf.loss(log_probs, lengths, given["rewards"], mask, rank_weight, sft_term, given["padded"])
        ranking = rrhf.ranking_loss(log_probs / lengths.clamp(min=1), given["rewards"], mask)
        return losses, {"ranking_loss": ranking}

    return loss


def _ranks(rewards: Sequence[float]) -> list[float]:
    """As many numbers in the same order: all that the loss asks of rewards, which fp32 might make equal."""
    order = sorted(set(rewards))
    return [float(order.index(r)) for r in rewards]


def _candidates(job: Job) -> tuple[list[Prompt], Drawn]:
    """The prompts with their candidates; a text counts once, and an empty one not at all."""
    how = job.entry.candidates
    pairs = pairs_of(job, "data") if job.one("data").produces == "preference pairs" else []
    given: dict[str, list[Answer]] = {}
    if pairs:
        prompts = once(Prompt(pair.prompt) for pair in pairs)
        if isinstance(how, DataCandidates) or how.data:
            for pair in pairs:
                given.setdefault(Prompt(pair.prompt).id, []).extend(_both(pair))
    else:
        prompts = distinct_prompts_of(job, "data")
    if not isinstance(how, DataCandidates):
        check_lengths(job, prompts, "data")
    if isinstance(how, DataCandidates):
        drawn: Drawn = [[] for _ in prompts]
    elif isinstance(how, SampledCandidates):
        drawn = own_samples(job, prompts, samples=how.count, temperature=how.temperature, top_p=how.top_p)
    else:
        drawn = drawn_once(job, "beams", lambda: _beams(job, prompts))
    every = [[*row, *given.get(p.id, [])] for p, row in zip(prompts, drawn, strict=True)]
    distinct = [_distinct(row) for row in every]
    there = [(p, row) for p, row in zip(prompts, distinct, strict=True) if row]
    if not any(len(row) > 1 for _, row in there):
        raise UserError("no prompt has two different candidates, so there is nothing to rank; draw more, or otherwise")
    return [p for p, _ in there], [row for _, row in there]


def _distinct(answers: Sequence[Answer]) -> list[Answer]:
    """The usable ones, of those with one text the first."""
    found: dict[str, Answer] = {}
    for answer in filter(usable, answers):
        found.setdefault(answer.text, answer)
    return list(found.values())


def _both(pair: Pair) -> list[Answer]:
    return [Answer(pair.chosen, (), pair.chosen_finished), Answer(pair.rejected, (), pair.rejected_finished)]


def _beams(job: Job, prompts: Sequence[Prompt]) -> Drawn:
    how = job.entry.candidates
    diverse = isinstance(how, DiverseBeamCandidates)
    loaded = load_language_model(job.start)
    encoded = [encode_prompt(loaded.tokenizer, p.messages) for p in prompts]
    leave_room(job.start.name, loaded.model, encoded, job.entry.max_new_tokens)
    with naming(job.start.name, prompts):
        found = beam_search(
            loaded.model,
            encoded,
            beams=how.count,
            groups=how.count if diverse else 1,
            diversity=how.diversity if diverse else 0.0,
            temperature=how.temperature if diverse else 1.0,
            max_new_tokens=job.entry.max_new_tokens,
            eos_ids=loaded.eos_ids,
            rows=max(job.execution.rows, how.count),
            on_progress=lambda done, total: job.log.progress(done, total, "prompts"),
        )
    drawn = [[Answer(decode_answer(loaded.tokenizer, b.ids), tuple(b.ids), b.finished) for b in row] for row in found]
    del loaded
    free_memory()
    return drawn


def _mean_log_probs(job: Job, model: Any, rows: Sequence[Row]) -> list[list[float]]:
    """The length-normalised log-probability of each answer: RRHF's reward model."""
    if not rows:
        return []
    sums = score_rows(
        model,
        rows,
        batch=job.execution.rows,
        precision=own_precision(job.start),
        on_progress=lambda done, total: job.log.progress(done, total, "test pairs"),
    )
    return [
        [total / len(answer) for total, answer in zip(row, answers, strict=True)]
        for row, (_, answers) in zip(sums, rows, strict=True)
    ]
