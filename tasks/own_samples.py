"""What a training stage draws from the model it improves, with the rewards; kept until the stage is built.

The draws of a round are its own: their random numbers belong to (seed, prompt, round, sample) and, night after night, to the
model that the night went on from, so a later round does not meet the numbers of an earlier one, nor those of any other stage.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any

from registry.artifacts import Artifact
from registry.rows import Prompt
from tasks.answers import draw
from tasks.distributed import main_first
from tasks.drawing import Answer
from tasks.inputs import SAMPLES, read_lines, write_lines
from tasks.job import Job
from tasks.memory import free_memory
from tasks.rules import Rule
from tasks.scores import Scores

Drawn = list[list[Answer]]
"""`[prompt][sample]`"""


def own_samples(
    job: Job, prompts: Sequence[Prompt], *, samples: int, temperature: float = 1.0, top_p: float = 1.0
) -> Drawn:
    """Samples of the model that the stage goes on from."""
    rule = Rule(job.start, temperature=temperature, top_p=top_p)
    stream = f"{job.entry.do} round {getattr(job.entry, 'round', 1)}{_night(job.artifact)}"

    def made() -> Drawn:
        (drawn,) = draw(
            [rule], prompts, samples, job.entry.max_new_tokens, job.seed, job.execution, job.log, stream=stream
        )
        free_memory()
        return drawn

    return drawn_once(job, "samples", made)


def _night(artifact: Artifact) -> str:
    """Which model of an earlier run the stage's first round went on from."""
    for since in artifact.inputs.get("since", ()):
        return f" since {since.fingerprint}"
    for previous in artifact.inputs.get("previous", ()):
        return _night(previous)
    return ""


def drawn_once(job: Job, name: str, made: Callable[[], Drawn]) -> Drawn:
    """What `made` draws, or what it drew before this stage's process died."""
    path = job.scratch / f"{name}.jsonl"
    with main_first() as is_main:  # of several processes one draws
        if path.exists():
            if is_main:
                job.log.note("the samples of the run before are taken up")
            return [[Answer(**a | {"ids": tuple(a["ids"])}) for a in row] for row in read_lines(path)]
        drawn = made()
        _keep(path, ([vars(a) for a in row] for row in drawn))
        return drawn


def scored(
    job: Job, reward: Artifact, prompts: Sequence[Prompt], drawn: Drawn, scores: Scores | None = None
) -> list[list[float]]:
    """The rewards `[prompt][sample]`."""
    return scored_once(job, reward, prompts, [[a.text for a in row] for row in drawn], scores)


def scored_once(
    job: Job, reward: Artifact, prompts: Sequence[Prompt], texts: Sequence[Sequence[str]], scores: Scores | None = None
) -> list[list[float]]:
    """The rewards `[prompt][text]`, or what they were before this stage's process died. `scores` may know some."""
    asked = json.dumps([reward.fingerprint, [[p.id, *row] for p, row in zip(prompts, texts, strict=True)]])
    path = job.scratch / f"scores-{hashlib.sha256(asked.encode()).hexdigest()[:16]}.jsonl"
    with main_first() as is_main:  # of several processes one scores
        if path.exists():
            if is_main:
                job.log.note("these answers were scored before: their scores are taken up")
            return list(read_lines(path))
        found = (scores or Scores(job.execution, job.log)).of(reward, prompts, texts)
        if is_main:
            _keep(path, found)
        return found


def _keep(path: Path, rows: Iterable[Any]) -> None:
    """Writes what outlives a process that dies."""
    path.parent.mkdir(parents=True, exist_ok=True)
    unfinished = path.with_suffix(f".{os.getpid()}.part")
    with unfinished.open("w", encoding="utf-8") as file:
        file.writelines(json.dumps(row) + "\n" for row in rows)
        file.flush()
        os.fsync(file.fileno())  # else after a power cut there may be the name and no rows
    unfinished.replace(path)


def usable(answer: Answer) -> bool:
    """Whether a sample may be learnt from: it says something."""
    return bool(answer.text.strip())


def write_samples(
    job: Job,
    prompts: Sequence[Prompt],
    drawn: Drawn,
    rewards: Sequence[Sequence[float]],
    use: Callable[[int, int], str],
) -> None:
    """The table of what was drawn and what became of it, `samples.jsonl`; `use(prompt, sample)` names that."""
    write_lines(
        job.out / SAMPLES,
        [
            {
                "prompt": list(prompt.messages),
                "responses": [
                    {"text": a.text, "tokens": a.tokens, "finished": a.finished, "reward": r, "use": use(p, s)}
                    for s, (a, r) in enumerate(zip(drawn[p], rewards[p], strict=True))
                ],
            }
            for p, prompt in enumerate(prompts)
        ],
    )
