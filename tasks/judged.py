"""What judges say of an evaluation's answers: who is shown what, the replies, and what comes of them."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor, as_completed
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from registry import judges, verdicts
from registry.artifacts import Artifact
from registry.methods.comparison import Interval
from registry.methods.judging import FIRST_WINS, fold, sample_pairs, verdict_of
from registry.rows import Prompt
from registry.verdicts import Reply
from specs.judges import Judge
from tasks.answers import Answer
from tasks.inputs import write_lines
from tasks.job import Job

VERDICTS = "verdicts.jsonl"


@dataclass(frozen=True)
class Showing:
    """One pair of answers in one order."""

    policy: int
    prompt: int
    pair: int
    samples: tuple[int, int]
    """The number of the policy's sample and of the reference's."""
    first: Literal["policy", "reference"]
    """Whose answer is shown first, as A."""
    request: dict[str, Any]
    key: str


def try_judges(job: Job) -> None:
    """Asks each judge once, before the answers are drawn. Raises `UnfitError` where one cannot be asked."""
    for judge in job.many("judges"):
        reply = judges.try_out(judge.name, _entry(judge))
        if verdict_of(reply.text) is None:
            job.log.note(f"{judge.name}: to a first question it said {reply.text[:60]!r}, in which there is no verdict")


def judged(
    job: Job,
    prompts: Sequence[Prompt],
    answers: Sequence[Sequence[Sequence[Answer]]],
    reference: int,
    measured: Callable[[NDArray[np.float64]], Interval],
) -> list[list[dict[str, Any] | None]]:
    """`[policy][judge]`, what each judge's verdicts come to; None for the reference, which is compared with nothing. `answers`
    are `[policy][prompt][sample]`. Writes every reply to `verdicts.jsonl`."""
    rows: list[dict[str, Any]] = []
    found: list[list[dict[str, Any] | None]] = [[] for _ in answers]
    for number, judge in enumerate(job.many("judges")):
        shown = list(_showings(judge, prompts, answers, reference))
        replies = _replies(job, judge, shown)
        rows += ({"judge": number, **_row(prompts, showing, replies[showing.key])} for showing in shown)
        for i, of_policy in enumerate(found):
            mine = [showing for showing in shown if showing.policy == i]
            of_policy.append(None if i == reference else _outcome(mine, replies, len(prompts), measured))
    if rows:
        write_lines(job.out / VERDICTS, rows)
    return found


def _entry(judge: Artifact) -> Judge:
    assert isinstance(judge.entry, Judge)
    return judge.entry


def _showings(
    judge: Artifact, prompts: Sequence[Prompt], answers: Sequence[Sequence[Sequence[Answer]]], reference: int
) -> Iterator[Showing]:
    entry = _entry(judge)
    pairs = sample_pairs(len(answers[reference][0]), entry.pairs_per_prompt)
    for i in range(len(answers)):
        for p, prompt in enumerate(prompts if i != reference else ()):
            for pair, (s, t) in enumerate(pairs):
                ours, theirs = answers[i][p][s].text, answers[reference][p][t].text
                orders: tuple[tuple[Literal["policy", "reference"], str, str], ...]
                orders = (("policy", ours, theirs), ("reference", theirs, ours))
                for first, one, other in orders:
                    request = judges.request(entry, prompt.messages, one, other)
                    key = verdicts.key(entry.base_url, request)
                    yield Showing(i, p, pair, (s, t), first, request, key)


def _replies(job: Job, judge: Artifact, shown: Sequence[Showing]) -> dict[str, Reply]:
    """By key. Only what no run has asked before is asked, and each reply is kept as it comes."""
    entry = _entry(judge)
    path = verdicts.place()
    wanted = {showing.key: showing.request for showing in shown}
    replies = verdicts.known(path, wanted)
    new = [key for key in wanted if key not in replies]
    job.log.note(f"asking {judge.name} for {len(new):,} verdicts; {len(replies):,} are there already")
    ask = judges.connect(judge.name, entry)

    def asked(key: str) -> tuple[str, Reply]:
        reply = ask(wanted[key])
        verdicts.keep(path, key, reply)
        return key, reply

    with ThreadPoolExecutor(entry.parallel) as pool:
        try:
            for done, one in enumerate(as_completed([pool.submit(asked, key) for key in new]), 1):
                key, replies[key] = one.result()
                job.log.progress(done, len(new), "verdicts")
        except BaseException:
            pool.shutdown(cancel_futures=True)
            raise
    return replies


def _outcome(
    shown: Sequence[Showing],
    replies: dict[str, Reply],
    prompts: int,
    measured: Callable[[NDArray[np.float64]], Interval],
) -> dict[str, Any]:
    """Of one policy and one judge. Requests and tokens are those that the verdicts took, whenever they were asked for."""
    first_wins = np.full((prompts, 1 + max(showing.pair for showing in shown), 2), np.nan)
    for showing in shown:
        verdict = verdict_of(replies[showing.key].text)
        if verdict is not None:
            first_wins[showing.prompt, showing.pair, int(showing.first == "reference")] = FIRST_WINS[verdict]
    folded = fold(first_wins)
    used = list({showing.key: replies[showing.key] for showing in shown}.values())
    return {
        "win_rate": measured(folded.wins)._asdict() if len(folded.wins) else None,
        "prompts": len(folded.wins),
        "prompts_left_out": prompts - len(folded.wins),
        "pairs": folded.pairs,
        "position_bias": folded.position_bias,
        "agreement": folded.agreement,
        "unparsable": folded.unparsable,
        "requests": len(used),
        "prompt_tokens": _sum(reply.prompt_tokens for reply in used),
        "completion_tokens": _sum(reply.completion_tokens for reply in used),
    }


def _sum(tokens: Iterator[int | None]) -> int | None:
    """None where an endpoint did not say how many."""
    counted = list(tokens)
    return None if None in counted else sum(filter(None, counted))


def _row(prompts: Sequence[Prompt], showing: Showing, reply: Reply) -> dict[str, Any]:
    return {
        "prompt": prompts[showing.prompt].id,
        "policy": showing.policy,
        "samples": list(showing.samples),
        "first": showing.first,
        "reply": reply.text,
        "verdict": verdict_of(reply.text),
        "prompt_tokens": reply.prompt_tokens,
        "completion_tokens": reply.completion_tokens,
    }
